"""Beam search: the few likeliest texts of each prompt, searched side by side in one compiled loop.

The rules are those of Hugging Face transformers, so that scores and texts can be compared: of the 2 x beam_size
likeliest continuations of a prompt's beams, those among the first beam_size that end are finished, and the likeliest of
the others go on. A finished text of n tokens scores the sum of its log-probabilities by n ** length_penalty.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.errors import UsageError
from aigc_jax.generation import branches, decode, processors, strategies
from aigc_jax.generation.processors import When, check_count, check_number, round_up
from aigc_jax.generation.text import Completion, Prompts, completed

_NEVER = -1e9  # the score of what is no text
_DEAD = -1e8  # below it lies only what is none


class Beam(NamedTuple):
  """How to search.

  length_penalty: above 0 favours long texts, below short ones; 0 leaves the plain sum.
  early_stopping: when a prompt's search ends. True: as soon as beam_size texts are finished; False: when the best beam,
    scored at its present length, is behind all of them; 'never': when no beam can overtake them at any length.
  num: how many texts of each prompt are wanted, the best first.
  """

  beam_size: int = 4
  length_penalty: float = 1.0
  early_stopping: bool | str = False
  num: int = 1
  processors: tuple = ()


class Searched(NamedTuple):
  """The best texts of each prompt, best first. Columns at or past a text's length are 0."""

  tokens: np.ndarray  # [batch, num, new] int32
  log_probabilities: np.ndarray  # [batch, num, new] float32, nats, under the model itself
  lengths: np.ndarray  # [batch, num] int32, the end token included; 0: there is no such text
  scores: np.ndarray  # [batch, num] float32


class _Tokens(NamedTuple):
  """The last token of texts, and where the rest of them is."""

  tokens: Any  # int32
  nats: Any  # float32, their log-probabilities under the model
  parents: Any  # int32: the beam of the step before that each goes on from


class _Finished(NamedTuple):
  scores: Any  # [batch, beams] float32, with the length penalty
  lengths: Any  # [batch, beams] int32; 0: none yet
  last: Any  # _Tokens [batch, beams]


class _State(NamedTuple):
  drawn: Any  # () int32
  scores: Any  # [batch, beams] float32, of the beams that go on
  last: Any  # [batch, beams] int32, the token to be fed
  written: Any  # _Tokens [new, batch, beams]: the beams of each step; texts are read back from it at the end
  finished: Any  # _Finished
  open: Any  # [batch] bool: more may be finished
  held: Any  # what the model keeps of the beams, see branches.py
  processors: Any


def check(beam: Beam):
  """Raises UsageError, one line, for a value that means nothing."""
  for name in ('beam_size', 'num'):
    check_count(name, getattr(beam, name))
  if beam.num > beam.beam_size:
    raise UsageError(
      f'num: {beam.num} texts do not come from a beam_size of {beam.beam_size}; use one of {beam.num} or more'
    )
  check_number('length_penalty', beam.length_penalty, lambda x: True, 'that is finite')
  if beam.early_stopping != 'never' and not isinstance(beam.early_stopping, bool):
    raise UsageError(f'early_stopping must be true, false or never, not {beam.early_stopping!r}')
  for processor in beam.processors:
    processor.validate()


def search(
  decoder,
  params,
  prompts,
  beam: Beam,
  max_new_tokens: int,
  *,
  sources=None,
  vocabulary_size=None,
  end_token=None,
  longest: tuple = (1, 1),
) -> Searched:
  """The likeliest texts that go on from rows of tokens. Arguments are those of `decode.generate`.

  With a beam_size of 1 it is greedy decoding. Raises UsageError, before compiling, for values out of range and for a
  text that would not fit into the model's context.
  """
  prompts = [np.asarray(prompt, np.int32).reshape(-1) for prompt in prompts]
  check(beam)
  decode.check(strategies.Sampling(), max_new_tokens=max_new_tokens)
  if not prompts or not all(map(len, prompts)):
    raise UsageError('each prompt must have at least one token')
  most = max(map(len, prompts))
  decode.check_room(decoder.context_length, most, max_new_tokens)
  size = decoder.vocabulary_size if vocabulary_size is None else vocabulary_size
  beams, room = int(beam.beam_size), round_up(max_new_tokens)
  sources = decode.padded(decoder, sources, len(prompts), longest[1])
  tokens, mask = decode.all_but_last(prompts, decode.width_for(most, longest[0]))
  cache, memory = decode.fill(decoder, mask.shape[1], params, tokens, mask, sources)
  texts = [prompt for prompt in prompts for _ in range(beams)]
  states = jax.tree.map(jnp.asarray, processors.start(beam.processors, texts, size, room))
  last = np.array([prompt[-1] for prompt in prompts], np.int32)
  stopping = True if beams == 1 else beam.early_stopping
  numbered = lambda leaf: np.float32(leaf) if isinstance(leaf, float) else leaf
  numbers = np.float32(beam.length_penalty), np.int32(max_new_tokens), jax.tree.map(numbered, beam.processors)
  inputs = (cache, memory, mask, last), states, np.int32(-1 if end_token is None else end_token)
  found = jax.device_get(_search(decoder, stopping, size, beams, room, params, *inputs, *numbers))
  return _read(*found, beam.num)


def _read(written, finished, num):
  """Searched of the `num` best: their texts, from the last token back."""
  lengths = finished.lengths[:, :num]
  rows, new = np.arange(len(lengths))[:, None], max(1, int(lengths.max()))
  tokens, nats = (np.zeros((*lengths.shape, new), kind) for kind in (np.int32, np.float32))
  beams = np.zeros(lengths.shape, np.int32)
  for n in reversed(range(new)):
    last, inside = n + 1 == lengths, n < lengths
    before = [array[n][rows, beams] for array in written]
    token, nat, parent = (
      np.where(last, of_end[:, :num], of_text) for of_end, of_text in zip(finished.last, before, strict=True)
    )
    tokens[:, :, n], nats[:, :, n] = np.where(inside, token, 0), np.where(inside, nat, 0)
    beams = np.where(inside, parent, 0)
  return Searched(tokens, nats, lengths, finished.scores[:, :num])


def _first(rows, beams, room, last, held, states):
  """The state before the first token: all beams are alike, so one alone counts."""
  empty = lambda *shape: _Tokens(jnp.zeros(shape, jnp.int32), jnp.zeros(shape), jnp.zeros(shape, jnp.int32))
  none = jnp.full((rows, beams), _NEVER)
  finished = _Finished(none, jnp.zeros((rows, beams), jnp.int32), empty(rows, beams))
  last, open = jnp.broadcast_to(last[:, None], (rows, beams)), jnp.ones(rows, bool)
  return _State(
    jnp.int32(0), none.at[:, 0].set(0.0), last, empty(room, rows, beams), finished, open, held, states
  )


def _pick(tree, columns):
  """Of leaves [batch, n], those at columns [batch, beams]."""
  return jax.tree.map(lambda leaf: jnp.take_along_axis(leaf, columns, axis=1), tree)


@partial(jax.jit, static_argnums=(0, 1, 2, 3, 4))
def _search(
  decoder, early_stopping, size, beams, room, params, given, states, end, length_penalty, limit, chain
):
  """(what the beams of each step were, the finished texts)."""
  cache, memory, mask, last = given
  rows, width = mask.shape
  held, memory = branches.start(decoder, cache, memory, mask, beams, room)
  scored = lambda total, length: total / length.astype(jnp.float32) ** length_penalty

  def goes_on(state, until):
    full = (state.finished.lengths > 0).all() if early_stopping is True else False
    return state.open.any() & jnp.logical_not(full) & (state.drawn < jnp.minimum(limit, until))

  def step(state):
    logits, held = branches.step(decoder, params, state.held, state.last, memory)
    when = When(state.drawn, limit - state.drawn)
    judge = lambda nats: processors.apply(chain, state.processors, nats.reshape(-1, size), when)
    scores, last = _continue(logits.astype(jnp.float32), state.scores, size, judge)
    ends = (last.tokens == end) | (state.drawn + 1 == limit)
    finished = _finish(state, scores, last, ends, early_stopping, scored)
    _, kept = lax.top_k(jnp.where(ends, _NEVER + scores, scores), beams)
    scores = _pick(jnp.where(ends, 2 * _NEVER, scores), kept)
    last, drawn = _pick(last, kept), state.drawn + 1
    written = jax.tree.map(lambda array, new: array.at[state.drawn].set(new), state.written, last)
    states = branches.reorder(state.processors, last.parents)
    states = processors.advance(chain, states, last.tokens.reshape(-1))
    furthest = limit if early_stopping == 'never' else drawn
    hopeful = jnp.where(length_penalty > 0, furthest, drawn)
    best = scored(scores[:, 0], hopeful)  # [batch]: what the best beam may yet score
    full = (finished.lengths > 0).all(1)
    better = jnp.where(full, best > finished.scores.min(1), best > _NEVER)
    held = branches.follow(held, last.parents)
    return _State(drawn, scores, last.tokens, written, finished, state.open & better, held, states)

  state = _first(rows, beams, room, last, held, states)
  for until in _stages(room):
    state = state._replace(held=branches.with_room(decoder, state.held, width, until))
    state = lax.while_loop(partial(goes_on, until=until), step, state)
  return state.written, state.finished


def _stages(room):
  """Numbers of new tokens after which what is held grows: attention to slots not yet used is most of a step's work."""
  return sorted({max(room // 4, min(room, 32)), max(room // 2, min(room, 32)), room})


def _continue(logits, scores, size, judge):
  """The likeliest continuations of beams with `scores` [batch, beams]: (scores, _Tokens), both [batch, 2 * beams].

  logits: [batch, beams, vocabulary], of which the first `size` may be chosen, as judge(log-probabilities) has them.
  """
  rows, beams, _ = logits.shape
  total = jax.nn.logsumexp(logits, axis=-1)  # [batch, beams]
  judged = judge(logits[:, :, :size] - total[:, :, None]).reshape(rows, beams, size)
  totals = (judged + scores[:, :, None]).reshape(rows, -1)
  best, columns = strategies.largest(totals, 2 * beams)
  parents, chosen = columns // size, columns % size
  places = parents * logits.shape[2] + chosen
  nats = jnp.take_along_axis(logits.reshape(rows, -1), places, axis=1) - _pick(total, parents)
  return best, _Tokens(chosen.astype(jnp.int32), nats, parents.astype(jnp.int32))


def _finish(state, scores, last, ends, early_stopping, scored):
  """The finished texts with those that end here, where these are better than the worst of them."""
  old, beams = state.finished, state.scores.shape[1]
  ends &= (jnp.arange(2 * beams) < beams) & (scores > _DEAD) & state.open[:, None]
  if early_stopping is True:
    ends &= ~(old.lengths > 0).all(1)[:, None]
  length = state.drawn + 1
  new = _Finished(jnp.where(ends, scored(scores, length), _NEVER), jnp.where(ends, length, 0), last)
  merged = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), old, new)
  # a finished text stays before what is none, however low it scores
  _, kept = lax.top_k(jnp.where(merged.lengths > 0, merged.scores, -jnp.inf), beams)
  return _pick(merged, kept)


def beam_text(
  decoder, params, tokenizer, prompts: Prompts, beam: Beam, *, max_new_tokens: int = 200, batch_size: int = 16
) -> list[Completion]:
  """The `beam.num` best texts of each prompt, best first; prompts in their order. Raises UsageError, as `search`."""
  tokens, sources, found = prompts.tokens, prompts.sources, {}
  order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]) + (len(sources[i]) if sources else 0))
  for first in range(0, len(order), batch_size):
    batch = order[first : first + batch_size]
    if len(order) > batch_size:
      batch += batch[-1:] * (batch_size - len(batch))  # one shape, one compilation
    searched = search(
      decoder,
      params,
      [tokens[i] for i in batch],
      beam,
      max_new_tokens,
      sources=None if sources is None else [sources[i] for i in batch],
      vocabulary_size=tokenizer.vocabulary_size,
      end_token=tokenizer.end_of_text,
      longest=prompts.longest,
    )
    for row, i in enumerate(batch):
      dropped = 0 if prompts.dropped is None else prompts.dropped[i]
      found[i] = [
        completed(prompts.texts[i], tokenizer, *(part[row, n] for part in searched[:3]), dropped)._replace(
          score=float(searched.scores[row, n])
        )
        for n in range(beam.num)
        if searched.lengths[row, n]
      ]
  return [completion for i in range(len(prompts.texts)) for completion in found[i]]
