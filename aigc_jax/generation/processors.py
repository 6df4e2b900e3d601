"""Changes of the logits that look at the text so far: penalties, bans and constraints, one after another.

A processor is a frozen dataclass that JAX knows as a tree (its numbers are inputs of the compiled program, so another
value compiles nothing; fields marked static are structure) with four functions:
  validate(): raises UsageError for a value that means nothing; on the host, before anything is compiled.
  start(texts, size, room) -> state: on the host, from each row's tokens before the first draw; every leaf has the rows
    on its first axis, so that beams can be reordered. `size` is the vocabulary's, `room` the most tokens to be drawn.
  apply(state, logits [rows, size], when) -> logits, -inf where a token is ruled out.
  advance(state, tokens [rows]) -> state: after the rows have drawn these.
A chain is a tuple of them, applied in its order, before temperature and the filters of `strategies`.
"""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UsageError


class When(NamedTuple):
  """How far the text is."""

  drawn: Any  # () int32, new tokens so far
  remaining: Any  # () int32, how many more there may be, the one to be chosen included


def start(chain, texts, size, room):
  """The states of a chain: `texts` are the rows' tokens, 1-D int arrays of any lengths."""
  return tuple(processor.start(texts, size, room) for processor in chain)


def apply(chain, states, logits, when):
  """All processors in turn, on logits [rows, vocabulary]."""
  for processor, state in zip(chain, states, strict=True):
    logits = processor.apply(state, logits, when)
  return logits


def advance(chain, states, tokens):
  """The states after the rows have drawn tokens [rows]."""
  return tuple(processor.advance(state, tokens) for processor, state in zip(chain, states, strict=True))


def check_number(name, value, valid, meaning):
  """Raises UsageError unless `value` is a finite number of which `valid` holds; `meaning` says which those are."""
  number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
  if not (number and math.isfinite(value) and valid(value)):
    raise UsageError(f'{name} must be a number {meaning}, not {value!r}')


@partial(jax.tree_util.register_dataclass, data_fields=['penalty'], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class RepetitionPenalty:
  """Divides the positive and multiplies the negative logits of tokens in the text (Keskar et al. 2019, equation 1).

  In the form that transformers uses; penalty > 1 makes them less probable, < 1 more.
  """

  penalty: Any

  def validate(self):
    check_number('repetition_penalty', self.penalty, lambda x: x > 0, 'above 0 (1 changes nothing)')

  def start(self, texts, size, room):
    seen = np.zeros((len(texts), size), bool)
    for row, text in enumerate(texts):
      seen[row, text] = True
    return seen

  def apply(self, state, logits, when):
    penalized = jnp.where(logits < 0, logits * self.penalty, logits / self.penalty)
    return jnp.where(state, penalized, logits)

  def advance(self, state, tokens):
    return state | (jnp.arange(state.shape[1]) == tokens[:, None])


@partial(jax.tree_util.register_dataclass, data_fields=['presence', 'frequency'], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class CountPenalty:
  """Lowers the logits of tokens that were drawn: by `presence` once, and by `frequency` for each time.

  Those of the prompt do not count, as in OpenAI's interface, from which the names are.
  """

  presence: Any
  frequency: Any

  def validate(self):
    for name in ('presence', 'frequency'):
      check_number(f'{name}_penalty', getattr(self, name), lambda x: True, 'that is finite')

  def start(self, texts, size, room):
    return np.zeros((len(texts), size), np.int32)

  def apply(self, state, logits, when):
    return logits - self.presence * (state > 0) - self.frequency * state

  def advance(self, state, tokens):
    return state + (jnp.arange(state.shape[1]) == tokens[:, None])


@partial(jax.tree_util.register_dataclass, data_fields=['count'], meta_fields=['end_token'])
@dataclasses.dataclass(frozen=True)
class MinimumLength:
  """Rules the end out until `count` tokens have been drawn."""

  count: Any
  end_token: int

  def validate(self):
    check_count('min_new_tokens', self.count)

  def start(self, texts, size, room):
    return ()

  def apply(self, state, logits, when):
    ends = jnp.arange(logits.shape[1]) == self.end_token
    return jnp.where(ends & (when.drawn < self.count), -jnp.inf, logits)

  def advance(self, state, tokens):
    return state


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=['size'])
@dataclasses.dataclass(frozen=True)
class NoRepeatedNgrams:
  """Rules out each token that would end a sequence of `size` tokens that the text has already, the prompt's included.

  (Paulus et al. 2018, section 2.5, for trigrams.)
  """

  size: int

  def validate(self):
    check_count('no_repeat_ngram_size', self.size)

  def start(self, texts, size, room):
    longest = max(map(len, texts))
    held = np.full((len(texts), round_up(longest + room)), -1, np.int32)
    for row, text in enumerate(texts):
      held[row, : len(text)] = text
    return held, np.array([len(text) for text in texts], np.int32)

  def apply(self, state, logits, when):
    held, lengths = state  # [rows, room], [rows]
    before, places = self.size - 1, jnp.arange(held.shape[1])
    ends = places[None] + before  # where a sequence that begins at each place ends
    same = ends < lengths[:, None]
    for i in range(before):
      last = jnp.take_along_axis(held, jnp.maximum(lengths - before + i, 0)[:, None], axis=1)
      same &= jnp.roll(held, -i, axis=1) == last
    same &= (lengths >= before)[:, None]
    banned = jnp.where(same, jnp.roll(held, -before, axis=1), logits.shape[1])  # out of range: dropped
    rows = jnp.arange(len(held))[:, None]
    return logits.at[rows, banned].set(-jnp.inf, mode='drop')

  def advance(self, state, tokens):
    held, lengths = state
    rows = jnp.arange(len(held))
    return held.at[rows, lengths].set(tokens, mode='drop'), lengths + 1


def check_count(name, value):
  """Raises UsageError unless `value` is a whole number of at least 1."""
  if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
    raise UsageError(f'{name} must be a whole number of at least 1, not {value!r}')


def round_up(n):
  """n or a little more: 16, 32, ... 128, then four sizes an octave, so that few shapes are compiled."""
  step = max(16, 2 ** (int(n - 1).bit_length() - 3))
  return -(-int(n) // step) * step
