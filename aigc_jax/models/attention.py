"""Multi-head attention (Vaswani et al. 2017) with grouped queries, rotary positions, windows and a key-value cache."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.models.layers import Dense, Dropout, Norm


class Where(NamedTuple):
  """Where a call's tokens stand, the same for every layer."""

  mask: Any  # [batch or 1, 1, time, slots] bool: which slots a token attends to
  rotation: (
    Any  # (cosine, sine), each [batch or 1, 1, time, head_width / 2] float32; None without rotary positions
  )
  index: Any  # () int32: the cache slot of the first token; None without a cache


def visible(query_positions, key_positions, window):
  """Causal mask, [..., time], [..., slots] -> [..., time, slots]; `window`: how many positions back, own included."""
  distance = query_positions[..., :, None] - key_positions[..., None, :]
  mask = distance >= 0
  return mask if window is None else mask & (distance < window)


def rotation(positions, head_width, base):
  """Cosine and sine of the rotary angles (Su et al. 2021, eq. 15), [batch, time] -> 2 x [batch, 1, time, head_width / 2]."""
  frequencies = jnp.asarray(base, jnp.float32) ** (
    -jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width
  )
  angles = positions[:, None, :, None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(x, cosine, sine):
  """Turns the pair (i, i + head_width / 2) of x [batch, heads, time, head_width]: the half-split order of Llama weights."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)
  return turned.astype(x.dtype)


def attend(query, key, value, mask, dropout=lambda weights: weights):
  """softmax(query key^T / sqrt(head_width)) value (Vaswani et al. 2017, eq. 1), the softmax in float32.

  Args:
    query: [batch, heads, time, head_width].
    key, value: [batch, key_value_heads, slots, head_width]; each head of these serves heads / key_value_heads queries.
    mask: [batch or 1, 1, time, slots] bool.
    dropout: applied to the attention weights.

  Returns:
    [batch, heads, time, head_width].
  """
  batch, heads, time, head_width = query.shape
  groups = key.shape[1]
  query = query.reshape(batch, groups, heads // groups, time, head_width) * jnp.asarray(
    head_width**-0.5, query.dtype
  )
  scores = jnp.einsum('bgrtd,bgsd->bgrts', query, key, preferred_element_type=jnp.float32)
  scores = jnp.where(mask[:, :, None], scores, jnp.finfo(jnp.float32).min)  # finite: a row may see nothing
  weights = dropout(jax.nn.softmax(scores, axis=-1)).astype(value.dtype)
  mixed = jnp.einsum('bgrts,bgsd->bgrtd', weights, value)
  return mixed.reshape(batch, heads, time, head_width)


class Attention(nn.Module):
  """Self-attention, [batch, time, width] -> the same; with a cache, over what it holds as well."""

  heads: int
  key_value_heads: int
  head_width: int
  bias: bool
  query_key_norm: bool
  epsilon: Any
  dropout: Any
  deviation: Any
  output_deviation: Any
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, where, cache=None, train=False):
    """`cache`: (keys, values), each [batch, key_value_heads, slots, head_width], or None. Returns (y, cache)."""
    query = self.project(x, 'query', self.heads)
    key = self.project(x, 'key', self.key_value_heads)
    value = self.project(x, 'value', self.key_value_heads)
    if self.query_key_norm:  # Henry et al. 2020; before the rotation, as in Qwen3
      query = Norm('rms_norm', self.epsilon, dtype=self.dtype, name='query_norm')(query)
      key = Norm('rms_norm', self.epsilon, dtype=self.dtype, name='key_norm')(key)
    if where.rotation is not None:
      query, key = rotate(query, *where.rotation), rotate(key, *where.rotation)
    if cache is not None:
      slot = (0, 0, where.index, 0)
      key = jax.lax.dynamic_update_slice(cache[0], key, slot)
      value = jax.lax.dynamic_update_slice(cache[1], value, slot)
      cache = key, value
    dropout = Dropout(self.dropout)
    mixed = attend(query, key, value, where.mask, lambda weights: dropout(weights, train))
    mixed = mixed.swapaxes(1, 2).reshape(*x.shape[:2], self.heads * self.head_width)
    return Dense(x.shape[-1], self.bias, self.output_deviation, self.dtype, name='output')(mixed), cache

  def project(self, x, name, heads):
    """[batch, time, width] -> [batch, heads, time, head_width]."""
    y = Dense(heads * self.head_width, self.bias, self.deviation, self.dtype, name=name)(x)
    return y.reshape(*x.shape[:2], heads, self.head_width).swapaxes(1, 2)
