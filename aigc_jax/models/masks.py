"""Which slots a token attends to, True where it does. Every mask is made here, from lengths or segment numbers."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@partial(jax.tree_util.register_dataclass, data_fields=['lengths'], meta_fields=['causal', 'window'])
@dataclasses.dataclass(frozen=True)
class Structure:
  """A mask by what it is made of, for attention that needs no array of it."""

  causal: bool = False  # a token sees itself and what is before
  window: int | None = None  # of a causal mask: tokens seen, itself included; None: all
  lengths: Any = (
    None  # [batch] int32: slots of each row, from the left, that hold something to see; None: all
  )

  def array(self, slots):
    """[batch or 1, 1, time or 1, slots] bool; a causal mask has as many tokens as slots."""
    places = jnp.arange(slots)[None]  # [1, slots]
    mask = visible(places, places, self.window)[:, None] if self.causal else jnp.ones((1, 1, 1, slots), bool)
    return mask if self.lengths is None else mask & (places < self.lengths[:, None])[:, None, None]


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
  """A mask [batch or 1, 1, time, slots] by which the first `lengths` [batch] tokens of a row are seen by all, too."""
  return mask | (jnp.arange(mask.shape[-1]) < lengths[:, None])[:, None, None, :]
