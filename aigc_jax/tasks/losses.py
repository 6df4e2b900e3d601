"""Losses as pure functions of arrays; they return one number per example and leave the adding to the task.

`cross_entropy` alone adds: what it need not hold it could not hand on.
"""

import functools
import itertools

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


def info_nce(views, mask, temperature, context):
  """The loss of a contrast between two views of images: which of all other views is the same image's?

  Chen et al. 2020, eq. 1 (NT-Xent); van den Oord et al. 2018 (InfoNCE). All views of the whole batch are candidates, on
  whatever device they are, but those of padding.

  Args:
    views: [batch, 2, width] of this device.
    mask: [batch] float32, 0 at padding.
    temperature: a float, which may be traced.
    context: Context.

  Returns:
    (nats [batch], the mean over an image's two views; how many of the two are found first of all [batch], as a part).
    A view that is as near as others counts as if one of these were drawn: where all are alike, little is found.
  """
  views = views.astype(jnp.float32)
  views = views * jax.lax.rsqrt(jnp.square(views).sum(-1, keepdims=True) + 1e-12)
  batch, _, width = views.shape
  own = views.reshape(2 * batch, width)
  others, real = context.gather(own), context.gather(jnp.repeat(mask, 2))  # [candidates, width], [candidates]
  places = context.places(2 * batch)[:, None]
  candidates = jnp.arange(len(others))
  similarity = own @ others.T / temperature  # [2 * batch, candidates]
  # finite: padding may see nothing
  similarity = jnp.where((candidates != places) & (real > 0), similarity, jnp.finfo(jnp.float32).min)
  pair = jnp.take_along_axis(similarity, places ^ 1, 1)[:, 0]  # views of an image lie side by side
  nats = jnp.where(jnp.repeat(mask, 2) > 0, jax.nn.logsumexp(similarity, 1) - pair, 0.0)
  nearest = similarity.max(1)
  found = (pair >= nearest) / (similarity >= nearest[:, None]).sum(1)
  return nats.reshape(batch, 2).mean(1), found.reshape(batch, 2).mean(1)


def cross_entropy(logits_of, params, x, targets, weights, chunk=None, smoothing=None):
  """Cross-entropy of a vocabulary from what its output layer reads, of all places at once or of some at a time.

  By chunks, the logits [batch, time, vocabulary] are never held: those of a chunk are made, used, for slopes too, and
  forgotten (as FusedLinearCrossEntropy of Liger Kernel does with rows, Hsu et al. 2024; here it is time that is cut,
  so that devices keep their rows). First derivatives only.

  Args:
    logits_of: params, x [batch, n, width] -> logits [batch, n, vocabulary], of each place by itself.
    x: [batch, time, width].
    targets: [batch, time] int.
    weights: [batch, time] float32, how much each place counts; no gradient passes to them.
    chunk: places of each row at a time; None: all.
    smoothing: as in `smoothed_cross_entropy`.

  Returns:
    (sum of weights x nats () float32, whether the likeliest token is the target [batch, time] bool).
  """

  def score(params, x, targets):
    logits = logits_of(params, x)  # [batch, n, vocabulary]
    return smoothed_cross_entropy(logits, targets, smoothing), logits.argmax(-1) == targets

  weights = jax.lax.stop_gradient(weights)
  if chunk is None:
    nats, hits = score(params, x, targets)
    return (nats * weights).sum(), hits
  time = x.shape[1]
  chunk = min(chunk, time)
  fill = lambda array: jnp.pad(array, [(0, 0), (0, -time % chunk)] + [(0, 0)] * (array.ndim - 2))
  rows = [fill(array) for array in (x, targets, weights)]
  leaves, tree = jax.tree.flatten(params)
  reads = reads_of(logits_of, params, x[:, :chunk])
  total, hits = summed(
    lambda read, *places: score(filled_in(tree, reads, read), *places),
    chunk,
    list(itertools.compress(leaves, reads)),
    *rows,
  )
  return total, hits[:, :time]


def reads_of(function, params, x):
  """[bool]: which leaves of `params` function(params, x) reads."""
  program = jax.make_jaxpr(function)(params, x).jaxpr
  read = {id(variable) for equation in program.eqns for variable in equation.invars}
  return [id(variable) in read for variable in program.invars[: len(jax.tree.leaves(params))]]


def filled_in(tree, reads, read):
  """The tree with the leaves `read`, and None for those that are not."""
  read = iter(read)
  return jax.tree.unflatten(tree, [next(read) if wanted else None for wanted in reads])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def summed(score, chunk, read, x, targets, weights):
  """(sum of weights x nats (), hits [batch, time]), chunk by chunk of a time that it divides.

  score: (read, x, targets) -> (nats, hits). read: parameters.
  """

  def one(start, held):
    total, hits = held
    x_here, targets_here, weights_here = (piece(array, start, chunk) for array in (x, targets, weights))
    nats, hits_here = score(read, x_here, targets_here)
    return total + (nats * weights_here).sum(), put(hits, hits_here, start)

  return by_chunks(one, chunk, x.shape[1], (jnp.zeros_like(weights[0, 0]), jnp.zeros_like(targets, bool)))


def summed_with_slopes(score, chunk, read, x, targets, weights):
  """The same, and the slopes by `read` and `x`: while the logits are at hand, or they had to be made once more.

  Those of float32 parameters are added up in float32, whatever type the product is computed in.
  """

  def one(start, held):
    total, hits, slopes, x_slope = held
    x_here, targets_here, weights_here = (piece(array, start, chunk) for array in (x, targets, weights))

    def weighted(read, x):
      nats, hits = score(read, x, targets_here)
      return (nats * weights_here).sum(), hits

    (more, hits_here), (read_here, slope_here) = jax.value_and_grad(weighted, (0, 1), has_aux=True)(
      read, x_here
    )
    slopes = jax.tree.map(jnp.add, slopes, read_here)
    return total + more, put(hits, hits_here, start), slopes, put(x_slope, slope_here, start)

  none = jax.tree.map(jnp.zeros_like, (weights[0, 0], targets, read, x))
  none = none[0], none[1].astype(bool), *none[2:]
  total, hits, *slopes = by_chunks(one, chunk, x.shape[1], none)
  return (total, hits), slopes


def scaled_slopes(score, chunk, slopes, changes):
  del score, chunk
  return *jax.tree.map(lambda slope: slope * changes[0].astype(slope.dtype), slopes), None, None


summed.defvjp(summed_with_slopes, scaled_slopes)


def by_chunks(one, chunk, time, held):
  """`held` as one(start, held) leaves it at each chunk.

  No scan: jax.checkpoint, where it keeps values, would keep what a scan adds up, once for each chunk.
  """
  step = lambda carry: (carry[0] + chunk, one(*carry))
  return jax.lax.while_loop(lambda carry: carry[0] < time, step, (jnp.int32(0), held))[1]


def piece(array, start, chunk):
  return jax.lax.dynamic_slice_in_dim(array, start, chunk, 1)


def put(array, part, start):
  return jax.lax.dynamic_update_slice_in_dim(array, part, start, 1)
