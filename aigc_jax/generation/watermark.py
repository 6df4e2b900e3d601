"""A watermark that statistics can find in a text without its model (Kirchenbauer et al. 2023).

Each token decides, with a secret key, which part of the vocabulary is green behind it. Generation favours green tokens
a little; whoever has the key and the tokenizer counts them, and chance alone would hardly make so many.
"""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import DataError, UsageError
from aigc_jax.generation.processors import check_number
from aigc_jax.generation.strategies import threshold


class Detection(NamedTuple):
  """What the tokens of a text tell."""

  z_score: float  # standard deviations by which green tokens are more than chance gives
  p_value: float  # the chance of so high a z-score in a text without this watermark
  green: int
  counted: int  # tokens that were looked at


def green_lists(key, before, size, fraction):
  """Whether each token is green behind tokens `before` [rows]: [rows, size] bool, round(fraction * size) of them.

  key: () uint32, the secret. A list is a function of the key and the one token before (section 3, algorithm 2, with the
  hash of the paper made by JAX's random bits).
  """
  keys = _keys(key, before, size)
  count = jnp.full(before.shape, jnp.round(fraction * size)).astype(jnp.int32)
  lowest = threshold(keys, jnp.ones_like(keys), count)[:, None]
  # of equal ones the first are taken, so that the count is exact
  above, level = keys > lowest, keys == lowest
  spare = count[:, None] - above.sum(-1, keepdims=True)
  return above | (level & (jnp.cumsum(level, axis=-1) <= spare))


def _keys(key, before, size):
  """Random numbers by which the tokens behind each of `before` [rows] are ordered: [rows, size] int32."""
  secret = jax.random.key(key)
  bits = lambda token: jax.random.bits(jax.random.fold_in(secret, token), (size,))
  return (jax.vmap(bits)(before) >> 1).astype(jnp.int32)


@partial(jax.tree_util.register_dataclass, data_fields=['key', 'fraction', 'strength'], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Watermark:
  """Adds `strength` to the logits of green tokens: the soft watermark, algorithm 2 (their delta; `fraction`: gamma)."""

  key: Any
  fraction: Any = 0.25
  strength: Any = 2.0

  def validate(self):
    check_key(self.key)
    check_number('watermark_fraction', self.fraction, lambda x: 0 < x < 1, 'above 0 and below 1')
    check_number('watermark_strength', self.strength, lambda x: x > 0, 'above 0')

  def start(self, texts, size, room):
    return np.array([text[-1] for text in texts], np.int32)

  def apply(self, state, logits, when):
    key = jnp.asarray(self.key).astype(jnp.uint32)
    green = green_lists(key, state, logits.shape[1], self.fraction)
    return jnp.where(green, logits + self.strength, logits)

  def advance(self, state, tokens):
    return tokens


def check_key(key):
  if isinstance(key, bool) or not isinstance(key, int | np.integer) or not 0 <= key < 2**31:
    raise UsageError(f'watermark: its key must be a whole number from 0 to 2**31 - 1, not {key!r}')


def detect(tokens, size: int, key: int, fraction: float = 0.25) -> Detection:
  """Looks for the watermark of `key` in the tokens of a text, the vocabulary being of `size`.

  z = (green - fraction T) / sqrt(T fraction (1 - fraction)) over T pairs of neighbours (eq. 3). A pair that comes
  again is counted once, since repeated text would count its luck again and again (section 4.1). Raises UsageError and
  DataError.
  """
  Watermark(key, fraction).validate()
  tokens = np.asarray(tokens, np.int32).reshape(-1)
  pairs = (
    np.unique(np.stack([tokens[:-1], tokens[1:]]), axis=1) if len(tokens) > 1 else np.zeros((2, 0), np.int32)
  )
  if pairs.shape[1] < 1:
    raise DataError(f'a text of {len(tokens)} tokens is too short for a watermark; two are the least')
  green = sum(int(_is_green(key, *part, size, fraction).sum()) for part in _parts(pairs))
  share, count = round(fraction * size) / size, pairs.shape[1]
  z = (green - share * count) / math.sqrt(count * share * (1 - share))
  return Detection(z, 0.5 * math.erfc(z / math.sqrt(2)), green, count)


def _parts(pairs, size=256):
  """Pairs [2, n] in parts of one size, the last padded; what pads is told by a mask [size]."""
  for first in range(0, pairs.shape[1], size):
    part = pairs[:, first : first + size]
    mask = np.arange(size) < part.shape[1]
    yield (*np.pad(part, ((0, 0), (0, size - part.shape[1]))), mask)


@partial(jax.jit, static_argnums=4)
def _is_green(key, before, tokens, mask, size, fraction):
  def one(pair):
    keys, token = _keys(jnp.asarray(key).astype(jnp.uint32), pair[0][None], size)[0], pair[1]
    earlier = (keys == keys[token]) & (jnp.arange(size) < token)
    return ((keys > keys[token]) | earlier).sum() < jnp.round(fraction * size)  # its rank, as in green_lists

  return jax.lax.map(one, (before, tokens)) & mask
