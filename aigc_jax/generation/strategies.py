"""How the next token is chosen: pure functions of logits [batch, vocabulary].

The order is that of Hugging Face transformers: processors, temperature, top-k, top-p, min-p, draw. A feature
that is None is absent from the program; the floats may be traced, so another temperature needs no compilation.

Nothing here sorts: XLA sorts 50,257 numbers in 20 ms on a CPU core, more than a 124M-parameter model takes for a token.
Thresholds are found bit by bit instead, with one compare-and-add over the row per bit, exactly. Probabilities are
counted in whole units of 2**-30, whose sums are exact in any order, so that a row's result is the same in any batch.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.errors import UsageError
from aigc_jax.generation.processors import check_number

_UNIT = 2**30  # probability 1 in int32, with room for the rounding of every token's share
_BLOCK = 64  # columns looked at together when a long row is narrowed


class Sampling(NamedTuple):
  """Choices for drawing a token; None is off, and all off draws from the model's own distribution.

  greedy: take the most probable token (after the processors); the other choices are then ignored.
  temperature: divides the logits; below 1 sharpens, above 1 flattens.
  top_k: keep the k most probable tokens (Fan et al. 2018), and ties with the last of them (of large vocabularies
    some). Structure: an int.
  top_p: keep the fewest most probable tokens whose probabilities add up to top_p (Holtzman et al. 2020).
  min_p: keep tokens at least min_p times as probable as the most probable one (Nguyen et al. 2024).
  processors: what looks at the text so far, see processors.py; applied first, in their order.
  """

  greedy: bool = False
  temperature: float | None = None
  top_k: int | None = None
  top_p: float | None = None
  min_p: float | None = None
  processors: tuple = ()


def validate(sampling: Sampling):
  """Raises UsageError, one line, for a value that means nothing. On the host, before anything is compiled."""
  ranges = {
    'temperature': (
      lambda x: np.float32(x) >= np.finfo(np.float32).tiny,
      'above 0 (the greedy strategy is its limit)',
    ),
    'top_p': (lambda x: 0 < x <= 1, 'above 0 and at most 1'),
    'min_p': (lambda x: 0 <= x < 1, 'at least 0 and below 1'),
  }
  for name, (valid, meaning) in ranges.items():
    if (value := getattr(sampling, name)) is not None:
      check_number(name, value, valid, meaning)
  for processor in sampling.processors:
    processor.validate()
  k = sampling.top_k
  if k is not None and (isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1):
    raise UsageError(f'top_k must be a whole number of at least 1, not {k!r}')


def temperature(logits, value):
  """Logits over temperature, shifted so that the largest is 0: no temperature, however small, overflows."""
  return (logits - logits.max(-1, keepdims=True)) / value


def top_k(logits, k: int):
  """-inf for all but the k largest of each row and those equal to the last of them."""
  if k >= logits.shape[-1]:
    return logits
  keys = sortable(logits)
  lowest = threshold(keys, jnp.ones_like(keys), jnp.full(keys.shape[0], k, jnp.int32))
  return jnp.where(keys >= lowest[:, None], logits, -jnp.inf)


def top_p(logits, p):
  """-inf for the tokens before which, from the most probable down, a mass of at least p has been counted."""
  shares = _shares(logits)
  total = shares.sum(-1)
  limit = jnp.clip(jnp.ceil(p * total.astype(jnp.float32)).astype(jnp.int32), 1, total)
  lowest = threshold(shares, shares, limit)
  return jnp.where(shares >= lowest[:, None], logits, -jnp.inf)


def min_p(logits, p):
  """-inf for tokens less than p times as probable as the most probable token."""
  return jnp.where(logits >= logits.max(-1, keepdims=True) + jnp.log(p), logits, -jnp.inf)


def process(logits, sampling: Sampling):
  """All that `sampling` asks for but its processors and the draw: [batch, vocabulary], -inf where ruled out."""
  if sampling.greedy:
    return logits
  if sampling.temperature is not None:
    logits = temperature(logits, sampling.temperature)
  if sampling.top_k is not None:
    logits = top_k(logits, sampling.top_k)
  if sampling.top_p is not None:
    logits = top_p(logits, sampling.top_p)
  if sampling.min_p is not None:
    logits = min_p(logits, sampling.min_p)
  return logits


def choose(logits, sampling: Sampling, uniform):
  """The next tokens, [batch] int32, of logits [batch, vocabulary] that have passed the processors.

  uniform: [batch, 2] float32 in [0, 1), all the chance there is in the choice (greedy needs none).
  """
  if sampling.greedy:
    return greedy(logits)
  if sampling.top_k is None or sampling.top_k * _BLOCK * 2 > logits.shape[-1]:
    return draw(process(logits, sampling), uniform)
  few, columns = narrow(logits, sampling.top_k)
  return jnp.take_along_axis(columns, draw(process(few, sampling), uniform)[:, None], axis=-1)[:, 0]


def greedy(logits):
  """The first of the most probable tokens, [batch] int32.

  By two reductions that XLA's CPU backend makes into vector code; its argmax takes five times as long.
  """
  size = logits.shape[-1]
  most = logits == logits.max(-1, keepdims=True)
  return jnp.where(most, jnp.arange(size, dtype=jnp.int32), size - 1).min(-1)


def draw(logits, uniform):
  """A token of each row with its softmax probability (to 2**-30), [batch] int32, by inverting the cumulated sum.

  uniform: [batch, 2]; the first finds a block of the row, the second a token within it.
  """
  rows, size = logits.shape
  width = max(1, math.isqrt(size))
  shares = jnp.pad(_shares(logits), ((0, 0), (0, -size % width))).reshape(rows, -1, width)
  block = _invert(shares.sum(-1), uniform[:, 0])
  inside = jnp.take_along_axis(shares, block[:, None, None], axis=1)[:, 0]  # [batch, width]
  return block * width + _invert(inside, uniform[:, 1])


def narrow(logits, k: int):
  """The columns among which each row's k largest are: ([batch, k * 64] logits, their columns int32).

  They lie in the k blocks of columns with the largest maxima. Of blocks whose maxima tie for the last place the first
  are taken, so ties with the k-th largest logit may be left out.
  """
  rows, size = logits.shape
  blocks = jnp.pad(logits, ((0, 0), (0, -size % _BLOCK)), constant_values=-jnp.inf).reshape(rows, -1, _BLOCK)
  keys = sortable(blocks.max(-1))  # [batch, blocks]
  lowest = threshold(keys, jnp.ones_like(keys), jnp.full(rows, k, jnp.int32))[:, None]
  above, level = keys > lowest, keys == lowest
  spare = k - above.sum(-1, keepdims=True)
  taken = above | (level & (jnp.cumsum(level, axis=-1) <= spare))
  rank = jnp.cumsum(taken, axis=-1)
  chosen = jax.vmap(lambda r: jnp.searchsorted(r, jnp.arange(1, k + 1)))(rank)  # [batch, k] block numbers
  columns = (chosen[:, :, None] * _BLOCK + jnp.arange(_BLOCK)).reshape(rows, -1)
  return jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(rows, -1), columns.astype(jnp.int32)


def largest(scores, count: int):
  """(the `count` largest of each row, their columns int32), both [batch, count], the first of equal ones first."""
  if scores.shape[-1] <= 2 * count * _BLOCK:
    return lax.top_k(scores, count)
  few, columns = narrow(scores, count)
  values, places = lax.top_k(few, count)
  return values, jnp.take_along_axis(columns, places, axis=-1)


def _invert(shares, uniform):
  """The first index at which the cumulated `shares` [batch, n] int32 exceed the fraction `uniform` of their sum."""
  cumulated = jnp.cumsum(shares, axis=-1)
  total = cumulated[:, -1]
  target = jnp.minimum(
    (uniform * total).astype(jnp.int32), total - 1
  )  # float32 may round up to the sum itself
  return (cumulated <= target[:, None]).sum(-1, dtype=jnp.int32)


def _shares(logits):
  """Softmax in whole units of 2**-30, [batch, vocabulary] int32."""
  return jnp.round(jax.nn.softmax(logits, axis=-1) * _UNIT).astype(jnp.int32)


def sortable(x):
  """float32 -> int32 of the same order: the bits of a negative number count backwards."""
  bits = lax.bitcast_convert_type(x, jnp.int32)
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def threshold(keys, weights, limit):
  """The largest t at which weights with keys >= t still add up to `limit` [batch], found bit by bit, [batch] int32."""

  def bit(i, lowest):
    candidate = lowest + (jnp.int32(1) << (31 - i))  # wraps from -2**31 to 0 at the first bit, the sign
    enough = jnp.where(keys >= candidate[:, None], weights, 0).sum(-1) >= limit
    return jnp.where(enough, candidate, lowest)

  return lax.fori_loop(0, 32, bit, jnp.full(keys.shape[0], -(2**31), jnp.int32))
