"""Which slots a token attends to, True where it does. Every mask is made here, from lengths or segment numbers."""

import jax
import jax.numpy as jnp


def segments_of(lengths, time):
  """[batch] -> [batch, time] int32: 1 where a row's tokens are, from the left, and 0 at its padding."""
  return (jnp.arange(time) < lengths[:, None]).astype(jnp.int32)


def positions_in(segments):
  """[batch, time] -> the same: how many tokens of its own segment are before each."""
  slots = jnp.arange(segments.shape[1])[None]  # [1, time]
  begins = jnp.concatenate([slots[:, :1] == 0 * segments[:, :1], segments[:, 1:] != segments[:, :-1]], axis=1)
  return slots - jax.lax.cummax(jnp.where(begins, slots, 0), axis=1)


def same_segment(query_segments, key_segments):
  """[batch, time], [batch, slots] -> [batch, time, slots]; tokens never see padding, which is segment 0."""
  return query_segments[:, :, None] == key_segments[:, None, :]


def visible(query_positions, key_positions, window=None):
  """Causal mask, [..., time], [..., slots] -> [..., time, slots]; `window`: positions seen, own included."""
  distance = query_positions[..., :, None] - key_positions[..., None, :]
  mask = distance >= 0
  return mask if window is None else mask & (distance < window)


def with_prefix(mask, lengths):
  """A causal mask [batch or 1, time, slots] by which the first `lengths` [batch] tokens of a row are seen by all."""
  return mask | (jnp.arange(mask.shape[-1]) < lengths[:, None])[:, None, :]
