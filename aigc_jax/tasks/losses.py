"""Losses as pure functions of arrays; they return one number per example and leave the adding to the task.

`cross_entropy` alone adds: what it need not hold it could not hand on.
"""

import functools

import jax
import jax.numpy as jnp


def softmax_cross_entropy(logits, targets):
  """-log softmax(logits)[target] in nats, [..., vocabulary] and integer [...] -> float32 [...]."""
  logits = logits.astype(jnp.float32)
  chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return jax.nn.logsumexp(logits, axis=-1) - chosen


def smoothed_cross_entropy(logits, labels, smoothing=None):
  """Cross-entropy in nats, [..., classes] and integer [...] -> float32 [...], of labels partly spread evenly.

  `smoothing`: the part that goes to all classes alike (Szegedy et al. 2016, section 7); None: none.
  """
  nats = softmax_cross_entropy(logits, labels)
  if smoothing is None:
    return nats
  logits = logits.astype(jnp.float32)
  even = jax.nn.logsumexp(logits, -1) - logits.mean(-1)
  return (1 - smoothing) * nats + smoothing * even


def cross_entropy(logits_of, x, targets, weights, chunk=None, smoothing=None):
  """Cross-entropy of a vocabulary from what its output layer reads, for all places at once or some at a time.

  By chunks, the logits [batch, time, vocabulary] are never held: those of a chunk are made, used, their slopes too,
  and forgotten (as the FusedLinearCrossEntropy of Hsu et al. 2024, Liger Kernel; here by time, so that devices keep
  their rows).
  Parameters' slopes are added over chunks in the parameters' own type.

  Args:
    logits_of: x [batch, n, width] -> logits [batch, n, vocabulary]; of its own place alone each.
    x: [batch, time, width]. targets: [batch, time] int.
    weights: [batch, time] float32, how much each place counts; no gradient passes to them.
    chunk: places of each row at a time; None: all.
    smoothing: as in `smoothed_cross_entropy`.

  Returns:
    (sum of weights x nats () float32, whether the likeliest token is the target [batch, time] bool).
  """

  def score(x, targets):
    logits = logits_of(x)  # [batch, n, vocabulary]
    return smoothed_cross_entropy(logits, targets, smoothing), logits.argmax(-1) == targets

  if chunk is None:
    nats, hits = score(x, targets)
    return (nats * weights).sum(), hits
  time = x.shape[1]
  pieces = [pieces_of(array, min(chunk, time)) for array in (x, targets, weights)]
  score, read = jax.closure_convert(score, *(piece[0] for piece in pieces[:2]))
  total, hits = summed(score, read, *pieces)
  return total, hits.swapaxes(0, 1).reshape(len(x), -1)[:, :time]


def pieces_of(array, chunk):
  """[batch, time, ...] -> [chunks, batch, chunk, ...], the last filled up with zeros."""
  array = jnp.pad(array, [(0, 0), (0, -array.shape[1] % chunk)] + [(0, 0)] * (array.ndim - 2))
  return array.reshape(len(array), -1, chunk, *array.shape[2:]).swapaxes(0, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def summed(score, read, x, targets, weights):
  """(sum of weights x nats (), hits [chunks, batch, chunk]) over the first axis of the last three.

  score: (x, targets, *read) -> (nats, hits); read: the arrays that it reads besides, parameters among them.
  """

  def one(piece):
    nats, hits = score(*piece[:2], *read)
    return (nats * piece[2]).sum(), hits

  totals, hits = jax.lax.map(one, (x, targets, weights))
  return totals.sum(), hits


def summed_with_slopes(score, read, x, targets, weights):
  """The same, and the slopes by `read` and x: with the logits at hand, or they would have to be made again."""

  def one(slopes, piece):
    x, targets, weights = piece

    def total(read, x):
      nats, hits = score(x, targets, *read)
      return (nats * weights).sum(), hits

    (here, hits), (more, slope) = jax.value_and_grad(total, (0, 1), has_aux=True)(read, x)
    return jax.tree.map(jnp.add, slopes, more), (here, hits, slope)

  slopes, (totals, hits, slope) = jax.lax.scan(one, jax.tree.map(jnp.zeros_like, read), (x, targets, weights))
  return (totals.sum(), hits), (slopes, slope)


def scaled_slopes(score, slopes, changes):
  del score
  return *jax.tree.map(lambda slope: slope * changes[0].astype(slope.dtype), slopes), None, None


summed.defvjp(summed_with_slopes, scaled_slopes)
