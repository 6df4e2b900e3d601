"""Multi-head attention (Vaswani et al. 2017): grouped queries, rotary positions, windows, a key-value cache.

By XLA (`attend`), which takes any mask as an array, or by cuDNN's flash attention (`flash`), which takes those that a
few numbers describe.
"""

from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.models.layers import Dense, Dropout, Norm
from aigc_jax.models.masks import Structure
from aigc_jax.models.rotary import rotate


class Where(NamedTuple):
  """Where a call's tokens stand, the same for every layer."""

  mask: Any  # [batch or 1, 1, time or 1, slots] bool: which slots a token attends to; a Structure for `flash`
  rotation: (
    Any  # (cosine, sine), each [batch or 1, 1, time, head_width] float32; None without rotary positions
  )
  index: Any  # () int32: the cache slot of the first token; None without a cache


@jax.custom_jvp
def masked_softmax(scores, mask):
  """Softmax over the last axis of float32 scores where mask is True, 0 elsewhere; uniform where a row sees nothing."""
  scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)  # finite: a row may see nothing
  powers = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
  return powers / powers.sum(axis=-1, keepdims=True)


@masked_softmax.defjvp
def masked_softmax_slope(primals, tangents):
  """Weights of 0 stop the gradient by themselves: no second masking, a pass over all scores less."""
  weights, change = masked_softmax(*primals), tangents[0]
  return weights, weights * (change - (weights * change).sum(axis=-1, keepdims=True))


def attend(query, key, value, mask, dropout=lambda weights: weights):
  """softmax(query key^T / sqrt(head_width)) value (Vaswani et al. 2017, eq. 1), the softmax in float32.

  Args:
    query: [batch, heads, time, head_width].
    key, value: [batch, key_value_heads, slots, head_width], or the first two axes as one, as a cache has them; each
      serves heads / key_value_heads heads of queries.
    mask: [batch or 1, 1, time or 1, slots] bool.
    dropout: applied to the attention weights.

  Returns:
    [batch, heads, time, head_width].
  """
  batch, heads, time, head_width = query.shape
  *rows, slots, _ = key.shape
  query = (query * jnp.asarray(head_width**-0.5, query.dtype)).reshape(*rows, -1, head_width)
  scores = jnp.einsum('...td,...sd->...ts', query, key, preferred_element_type=jnp.float32)
  weights = masked_softmax(scores.reshape(batch, heads, time, slots), mask)
  weights = dropout(weights).astype(value.dtype)
  mixed = jnp.einsum('...ts,...sd->...td', weights.reshape(*rows, -1, slots), value)
  return mixed.reshape(batch, heads, time, head_width)


def flash(query, key, value, structure):
  """`attend` by cuDNN, which holds no [time, slots] array forward or backward (Dao et al. 2022); CUDA devices alone.

  Args:
    query: [batch, heads, time, head_width], bfloat16 or float16.
    key, value: [batch, key_value_heads, slots, head_width], the same.
    structure: of the mask. A row of length 0 sees its first slot, so that every token sees something.

  Returns:
    [batch, heads, time, head_width].
  """
  (batch, _, time, _), slots = query.shape, key.shape[2]
  lengths, window = structure.lengths, structure.window
  if lengths is None and slots % 2 and not structure.causal:
    lengths = jnp.full(batch, slots)  # so that nobody sees the slot that `even` adds
  mixed = jax.nn.dot_product_attention(
    *(even(x.swapaxes(1, 2)) for x in (query, key, value)),
    is_causal=structure.causal,
    key_value_seq_lengths=None if lengths is None else jnp.maximum(lengths, 1).astype(jnp.int32),
    local_window_size=None if window is None else (window - 1, 0),  # to the left and right of a token itself
    implementation='cudnn',
  )
  return mixed[:, :time].swapaxes(1, 2)


def even(x):
  """[batch, time, heads, head_width], a token more where time is odd: jax refuses those, though cuDNN takes them."""
  return jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) if x.shape[1] % 2 else x


def write(held, new, index):
  """Puts new [batch, groups, time, head_width] into held [batch * groups, slots, head_width] from slot `index` on.

  Three axes, as the matrix products over the cache have them: with four XLA copies the cache at each step of one row.
  """
  return jax.lax.dynamic_update_slice(held, new.reshape(held.shape[0], -1, held.shape[2]), (0, index, 0))


class Attention(nn.Module):
  """Multi-head attention over a text's own tokens, or over the keys and values of another."""

  heads: int
  key_value_heads: int
  head_width: int
  width: int  # of what it reads and writes
  bias: bool  # of queries, keys and values
  output_bias: bool
  query_key_norm: bool
  epsilon: Any
  dropout: Any
  deviation: Any
  output_deviation: Any
  dtype: Any = jnp.float32

  def setup(self):
    into = lambda heads: Dense(
      (heads, self.head_width), self.bias, self.deviation, self.dtype
    )  # kernel [width, heads, head_width]
    self.query, self.key, self.value = (
      into(self.heads),
      into(self.key_value_heads),
      into(self.key_value_heads),
    )
    self.output = Dense(
      self.width, self.output_bias, self.output_deviation, self.dtype, input_axes=2
    )  # [heads, head_width, width]
    self.drop = Dropout(self.dropout)
    if self.query_key_norm:  # Henry et al. 2020; before the rotation, as in Qwen3
      norm = partial(Norm, 'rms_norm', self.epsilon, dtype=self.dtype)
      self.query_norm, self.key_norm = norm(), norm()

  def __call__(self, x, where, cache=None, train=False):
    """Self-attention, [batch, time, width] -> the same; with a cache, over what it holds as well.

    `cache`: (keys, values), each [batch * key_value_heads, slots, head_width], or None. Returns (y, cache).
    """
    key, value = self.keys_and_values(x, where.rotation)
    if cache is not None:
      cache = tuple(write(held, new, where.index) for held, new in zip(cache, (key, value), strict=True))
      held = cache
    else:
      held = key, value
    return self.mix(self.queries(x, where.rotation), held, where.mask, train), cache

  def cross(self, x, held, mask, train=False):
    """Attention of x [batch, time, width] over another text: `held` as `hold` gives it, mask [batch, 1, 1, source] or
    its Structure."""
    return self.mix(self.queries(x, None), held, mask, train)

  def hold(self, x):
    """Keys and values of another text [batch, source, width], each [batch, key_value_heads, source, head_width]."""
    return self.keys_and_values(x, None)

  def queries(self, x, turn):
    """[batch, time, width] -> [batch, heads, time, head_width]."""
    query = self.query(x).swapaxes(1, 2)
    query = self.query_norm(query) if self.query_key_norm else query
    return query if turn is None else rotate(query, *turn)

  def keys_and_values(self, x, turn):
    """[batch, time, width] -> two of [batch, key_value_heads, time, head_width]."""
    key, value = self.key(x).swapaxes(1, 2), self.value(x).swapaxes(1, 2)
    key = self.key_norm(key) if self.query_key_norm else key
    return key if turn is None else rotate(key, *turn), value

  def mix(self, query, held, mask, train):
    if isinstance(mask, Structure):
      mixed = flash(query, *held, mask)
    else:
      mixed = attend(query, *held, mask, lambda weights: self.drop(self.shown(weights), train))
    return self.output(mixed.swapaxes(1, 2))

  def shown(self, weights):
    """The weights [batch, heads, time, slots] as they are; whoever looks inside (`inspection.capture`) gets them."""
    self.sow('intermediates', 'weights', weights)
    return weights
