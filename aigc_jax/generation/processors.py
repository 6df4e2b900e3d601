"""Changes of the logits that look at the text so far: penalties, bans and constraints, one after another.

A processor is a frozen dataclass that JAX knows as a tree (its numbers are inputs of the compiled program, so another
value compiles nothing; fields marked static are structure) with four functions:
  validate(): raises UsageError for a value that means nothing; on the host, before anything is compiled.
  start(texts, size) -> state: on the host, from each row's tokens before the first draw; every leaf has the rows on
    its first axis, so that beams can be reordered. `size` is the vocabulary's.
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


def start(chain, texts, size):
  """The states of a chain: `texts` are the rows' tokens, 1-D int arrays of any lengths."""
  return tuple(processor.start(texts, size) for processor in chain)


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

  def start(self, texts, size):
    seen = np.zeros((len(texts), size), bool)
    for row, text in enumerate(texts):
      seen[row, text] = True
    return seen

  def apply(self, state, logits, when):
    penalized = jnp.where(logits < 0, logits * self.penalty, logits / self.penalty)
    return jnp.where(state, penalized, logits)

  def advance(self, state, tokens):
    return state | (jnp.arange(state.shape[1]) == tokens[:, None])
