"""The keys and values that a Transformer keeps of the tokens fed so far, and where more of them stand."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from aigc_jax.models import blocks, masks


class Cache(NamedTuple):
  """Keys and values of the tokens fed so far."""

  index: Any  # () int32: slots filled
  start: Any  # [batch] int32: slots at the left that are padding
  layers: Any  # per layer (keys, values), each [batch * key_value_heads, slots, head_width]


class Memory(NamedTuple):
  """What a decoder keeps of the text that it is made from."""

  layers: Any  # per layer (keys, values), each [batch * key_value_heads, source, head_width]
  mask: Any  # [batch or 1, 1, 1, source] bool: False at padding; its Structure where cuDNN attends


def empty(model, layers, batch_size, length):
  """A Cache of `length` slots a row; padding takes slots too, so there may be more than context_length."""
  shape = (batch_size * (model.key_value_heads or model.heads), length, blocks.width_of_head(model))
  empty = lambda: (jnp.zeros(shape, model.dtype), jnp.zeros(shape, model.dtype))
  return Cache(jnp.int32(0), jnp.zeros(batch_size, jnp.int32), tuple(empty() for _ in range(layers)))


def without_last(cache, count):
  """The cache before its last `count` tokens were fed: their slots are written anew."""
  return cache._replace(index=cache.index - count)


def place(cache, tokens, mask, window=None):
  """Where more tokens [batch, n] stand after those of a cache.

  Returns (start [batch], positions [batch, n], seen [batch, n, slots] bool: what was fed before, and the token itself).
  """
  start = cache.start if mask is None else cache.start + jnp.sum(~mask, axis=1, dtype=jnp.int32)
  slots = jnp.arange(cache.layers[0][0].shape[1])[None]  # [1, slots]
  here = cache.index + jnp.arange(tokens.shape[1])[None]  # [1, n]
  seen = masks.visible(here, slots, window) & (slots >= start[:, None])[:, None, :]
  return start, jnp.maximum(here - start[:, None], 0), seen


def place_branches(cache, tokens, before, window=None):
  """Where tokens [batch, n] stand that follow what `before` [batch, n, slots] bool says, not one another.

  Returns (positions [batch, n], seen [batch, n, slots] bool: what is before each, and the token itself).
  """
  own = jnp.arange(before.shape[2]) == cache.index + jnp.arange(tokens.shape[1])[:, None]  # [n, slots]
  seen = before | own
  if window is not None:  # a branch fills slots in order
    seen &= jnp.flip(jnp.flip(seen, -1).cumsum(-1, dtype=jnp.int32), -1) <= window
  return before.sum(-1, dtype=jnp.int32), seen


def feed(layers, cache, x, where, memory=None):
  """Runs blocks over x [batch, n, width] with what their caches hold. Returns (x, Cache)."""
  held = []
  for i, (block, kept) in enumerate(zip(layers, cache.layers, strict=True)):
    crossed = (None, None) if memory is None else (memory.layers[i], memory.mask)
    x, kept = block(x, where, kept, False, *crossed)
    held.append(kept)
  return x, cache._replace(index=cache.index + x.shape[1], layers=tuple(held))
