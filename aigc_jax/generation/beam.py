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
from aigc_jax.generation import decode, processors, strategies
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


class _Texts(NamedTuple):
  tokens: Any  # [batch, beams, new] int32
  log_probabilities: Any  # [batch, beams, new] float32
  scores: Any  # [batch, beams] float32, of the finished with the length penalty


class _State(NamedTuple):
  drawn: Any  # () int32
  running: _Texts
  finished: _Texts
  lengths: Any  # [batch, beams] int32, of the finished; 0: none yet
  open: Any  # [batch] bool: more may be finished
  last: Any  # [batch * beams] int32, the token to be fed
  cache: Any
  processors: Any


def check(beam: Beam):
  """Raises UsageError, one line, for a value that means nothing."""
  for name in ('beam_size', 'num'):
    check_count(name, getattr(beam, name))
  if beam.num > beam.beam_size:
    raise UsageError(
      f'num: {beam.num} texts do not come from a beam_size of {beam.beam_size}; use {beam.num} or more'
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
  longest = max(map(len, prompts))
  decode.check_room(decoder.context_length, longest, max_new_tokens)
  size = decoder.vocabulary_size if vocabulary_size is None else vocabulary_size
  beams, room = int(beam.beam_size), round_up(max_new_tokens)
  sources = decode.padded(decoder, sources, len(prompts))
  width = round_up(longest) - 1
  tokens, mask = np.zeros((2, len(prompts), width), np.int32)
  for row, prompt in enumerate(prompts):
    tokens[row, width + 1 - len(prompt) :] = prompt[:-1]
    mask[row, width + 1 - len(prompt) :] = 1
  cache, memory = decode.fill(decoder, round_up(width + room), params, tokens, mask.astype(bool), sources)
  texts = [prompt for prompt in prompts for _ in range(beams)]
  states = processors.start(beam.processors, texts, size, room)
  last = np.array([text[-1] for text in texts], np.int32)
  state = _first(len(prompts), beams, room, last, cache, states)
  stopping = True if beams == 1 else beam.early_stopping
  numbered = lambda leaf: np.float32(leaf) if isinstance(leaf, float) else leaf
  numbers = np.float32(beam.length_penalty), np.int32(max_new_tokens), jax.tree.map(numbered, beam.processors)
  end = np.int32(-1 if end_token is None else end_token)
  found = jax.device_get(_search(decoder, stopping, size, params, state, memory, end, *numbers))
  lengths = found.lengths[:, : beam.num]
  new = max(1, int(lengths.max()))
  inside = np.arange(new) < lengths[:, :, None]
  trimmed = lambda array: np.where(inside, array[:, : beam.num, :new], 0)
  kept = found.finished
  return Searched(trimmed(kept.tokens), trimmed(kept.log_probabilities), lengths, kept.scores[:, : beam.num])


def _first(rows, beams, room, last, cache, states):
  empty = lambda: _Texts(
    jnp.zeros((rows, beams, room), jnp.int32), jnp.zeros((rows, beams, room)), jnp.full((rows, beams), _NEVER)
  )
  running = empty()  # all beams are alike at first, so one alone counts
  running = running._replace(scores=running.scores.at[:, 0].set(0.0))
  repeated = jax.tree.map(lambda leaf: _repeat(leaf, rows, beams), cache)
  lengths, states = jnp.zeros((rows, beams), jnp.int32), jax.tree.map(jnp.asarray, states)
  first = jnp.ones(rows, bool), jnp.asarray(last), repeated, states
  return _State(jnp.int32(0), running, empty(), lengths, *first)


def _repeat(leaf, rows, beams):
  """[rows * n, ...] -> [rows * beams * n, ...]: what belongs to a row, for each of its beams."""
  if leaf.ndim == 0:
    return leaf
  whole = leaf.reshape(rows, 1, -1)
  shape = (leaf.shape[0] * beams, *leaf.shape[1:])
  return jnp.broadcast_to(whole, (rows, beams, whole.shape[2])).reshape(shape)


def _reorder(leaf, beams_before):
  """[rows * beams * n, ...] by beams_before [rows, beams]: which beam of its row each was before."""
  if leaf.ndim == 0:
    return leaf
  rows, beams = beams_before.shape
  flat = (jnp.arange(rows)[:, None] * beams + beams_before).reshape(-1)
  return leaf.reshape(rows * beams, -1)[flat].reshape(leaf.shape)


def _pick(texts, columns):
  """Of _Texts [batch, n, ...], those at columns [batch, beams]."""
  take = lambda array: jnp.take_along_axis(
    array, columns.reshape(*columns.shape, *[1] * (array.ndim - 2)), axis=1
  )
  return jax.tree.map(take, texts)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _search(decoder, early_stopping, size, params, state, memory, end, length_penalty, limit, chain):
  rows, beams, _ = state.running.tokens.shape
  memory = jax.tree.map(lambda leaf: _repeat(leaf, rows, beams), memory)
  scored = lambda total, length: total / length.astype(jnp.float32) ** length_penalty

  def goes_on(state):
    full = (state.lengths > 0).all() if early_stopping is True else False
    return state.open.any() & jnp.logical_not(full) & (state.drawn < limit)

  def step(state):
    logits, cache = decoder.step(params, state.cache, state.last[:, None], None, memory)
    own = jax.nn.log_softmax(logits[:, -1].astype(jnp.float32))[:, :size]  # [batch * beams, vocabulary]
    when = When(state.drawn, limit - state.drawn)
    judged = processors.apply(chain, state.processors, own, when).reshape(rows, beams, size)
    totals = (judged + state.running.scores[:, :, None]).reshape(rows, beams * size)
    candidates, before, chosen = _continue(state, own.reshape(rows, beams, size), totals)
    state = _finish(state, candidates, chosen, early_stopping, end, limit, scored)
    ends = (chosen == end) | (state.drawn + 1 == limit)
    _, kept = lax.top_k(jnp.where(ends, _NEVER + candidates.scores, candidates.scores), beams)
    before, last = (jnp.take_along_axis(array, kept, axis=1) for array in (before, chosen))
    running = _pick(candidates, kept)
    running = running._replace(
      scores=jnp.where(jnp.take_along_axis(ends, kept, axis=1), 2 * _NEVER, running.scores)
    )
    moved = jax.tree.map(lambda leaf: _reorder(leaf, before), (cache, state.processors))
    states = processors.advance(chain, moved[1], last.reshape(-1))
    drawn = state.drawn + 1
    furthest = limit if early_stopping == 'never' else drawn
    hopeful = jnp.where(length_penalty > 0, furthest, drawn)
    best = scored(running.scores[:, 0], hopeful)  # [batch]: what the best beam may yet score
    full = (state.lengths > 0).all(1)
    better = jnp.where(full, best > state.finished.scores.min(1), best > _NEVER)
    state = state._replace(drawn=drawn, running=running, open=state.open & better)
    return state._replace(last=last.reshape(-1), cache=moved[0], processors=states)

  return lax.while_loop(goes_on, step, state)._replace(cache=None, processors=None)


def _continue(state, own, totals):
  """The likeliest continuations of each row: (_Texts of 2 * beams, the beam each comes from, its new token)."""
  rows, beams, size = own.shape
  scores, columns = strategies.largest(totals, 2 * beams)
  before, chosen = columns // size, (columns % size).astype(jnp.int32)
  texts = _pick(state.running, before)
  nats = jnp.take_along_axis(own.reshape(rows, -1), columns, axis=1)
  written = lambda array, new: lax.dynamic_update_slice(array, new[:, :, None], (0, 0, state.drawn))
  return (
    _Texts(written(texts.tokens, chosen), written(texts.log_probabilities, nats), scores),
    before,
    chosen,
  )


def _finish(state, candidates, chosen, early_stopping, end, limit, scored):
  """The state with what ends here among the finished, if it is better than the worst of them."""
  beams = state.lengths.shape[1]
  ends = ((chosen == end) | (state.drawn + 1 == limit)) & (jnp.arange(2 * beams) < beams)
  ends &= (candidates.scores > _DEAD) & state.open[:, None]
  if early_stopping is True:
    ends &= ~(state.lengths > 0).all(1)[:, None]
  length = state.drawn + 1
  new = candidates._replace(scores=jnp.where(ends, scored(candidates.scores, length), _NEVER))
  merged = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), state.finished, new)
  lengths = jnp.concatenate([state.lengths, jnp.where(ends, length, 0)], axis=1)
  # a finished text stays before what is none, however low it scores
  _, kept = lax.top_k(jnp.where(lengths > 0, merged.scores, -jnp.inf), beams)
  return state._replace(finished=_pick(merged, kept), lengths=jnp.take_along_axis(lengths, kept, axis=1))


def beam_text(
  decoder, params, tokenizer, prompts: Prompts, beam: Beam, *, max_new_tokens: int = 200, batch_size: int = 16
) -> list[Completion]:
  """The `beam.num` best texts of each prompt, best first; prompts in their order. Raises UsageError, as `search`."""
  order = sorted(range(len(prompts.texts)), key=lambda i: len(prompts.tokens[i]))
  found = {}
  for first in range(0, len(order), batch_size):
    batch = order[first : first + batch_size]
    if len(order) > batch_size:
      batch += batch[-1:] * (batch_size - len(batch))  # one shape, one compilation
    searched = search(
      decoder,
      params,
      [prompts.tokens[i] for i in batch],
      beam,
      max_new_tokens,
      sources=None if prompts.sources is None else [prompts.sources[i] for i in batch],
      vocabulary_size=tokenizer.vocabulary_size,
      end_token=tokenizer.end_of_text,
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
