"""Rotary positions (Su et al. 2021), and how their frequencies are slowed for texts longer than those of training."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from aigc_jax.errors import UsageError


class Scaling(NamedTuple):
  """What slows the frequencies, as `config.model.rotary_*` has it; floats may be traced.

  kind: 'linear', all alike (Chen et al. 2023); 'llama3' and 'yarn' (Peng et al. 2023, section 3.2), those alone that
    turn few times over `context`, the tokens that the model was first trained on: all the way up to `low` turns, and
    not from `high` on. Between them llama3 blends by turns, yarn by the number of the frequency.
  """

  kind: str
  factor: Any
  context: int | None
  low: Any
  high: Any


def rotation(positions, head_width, base, scaling=None):
  """Cosine and signed sine of the rotary angles (Su et al. 2021, eq. 34), each [batch, 1, time, head_width]."""
  rates, size = frequencies(head_width, base), 1.0
  if scaling is not None:
    rates, size = slowed(rates, head_width, base, scaling)
  angles = positions[:, None, :, None].astype(jnp.float32) * rates  # [batch, 1, time, head_width / 2]
  cosine, sine = size * jnp.cos(angles), size * jnp.sin(angles)
  return jnp.concatenate([cosine, cosine], -1), jnp.concatenate([-sine, sine], -1)


def frequencies(head_width, base):
  """Radians a position of each pair, [head_width / 2]."""
  return jnp.asarray(base, jnp.float32) ** (-jnp.arange(0, head_width, 2, dtype=jnp.float32) / head_width)


def slowed(rates, head_width, base, scaling):
  """(frequencies [head_width / 2], factor of cosine and sine) of a Scaling."""
  kind, factor, context, low, high = scaling
  if kind == 'linear':
    return rates / factor, 1.0
  if kind == 'llama3':
    turns = context * rates / (2 * math.pi)
    kept = jnp.clip((turns - low) / (high - low), 0, 1)  # [head_width / 2]
    return rates * ((1 - kept) / factor + kept), 1.0
  # yarn: the number, from 0, of the frequency that makes so many turns
  number = lambda turns: (
    head_width * jnp.log(context / (turns * 2 * math.pi)) / (2 * jnp.log(jnp.asarray(base, jnp.float32)))
  )
  first = jnp.maximum(jnp.floor(number(high)), 0)
  last = jnp.minimum(jnp.ceil(number(low)), head_width - 1)
  last = jnp.where(first == last, last + 0.001, last)
  kept = 1 - jnp.clip((jnp.arange(head_width // 2) - first) / (last - first), 0, 1)
  size = 0.1 * jnp.log(jnp.maximum(jnp.asarray(factor, jnp.float32), 1)) + 1
  return rates * ((1 - kept) / factor + kept), size


def rotate(x, cosine, sine):
  """Turns pairs (i, i + head_width / 2), as Llama's weights expect; x [batch, heads, time, head_width].

  The partner comes by `roll`: halves cut out and joined again cost XLA's CPU backend a tenth of a training step.
  """
  turned = x.astype(jnp.float32)
  return (turned * cosine + jnp.roll(turned, x.shape[-1] // 2, axis=-1) * sine).astype(x.dtype)


def check(config):
  """Rules across the rotary fields of a model config. Raises UsageError."""
  kind = config.get('rotary_scaling')
  needed = {None: (), 'linear': ('rotary_factor',)}.get(kind, ('rotary_factor', 'rotary_context'))
  for name in needed:
    if config[name] is None:
      raise UsageError(f'config.model.{name}: must be given with config.model.rotary_scaling = {kind!r}')
