"""The loop over a decoder's cached step: prefill the prompts once, then draw tokens in compiled chunks.

A decoder is a NamedTuple of pure functions (`models.decoder` makes one):
  init_cache(batch_size, length) -> cache, any pytree, with room for `length` positions, padding included;
  step(params, cache, tokens [batch, n], mask [batch, n] or None, memory) -> (logits [batch, n, vocabulary], cache),
    where mask False marks padding on the left, allowed while the cache is being filled with a prompt;
  encode(params, sources [batch, time], lengths [batch]) -> memory of what the text is made from, any pytree; None for a
    language model, whose memory is None;
  vocabulary_size: of its logits;
  context_length: the most tokens it can look back over, the last one included; None: no limit (recurrent networks).

Text longer than the context is continued over a window that jumps: when a row has filled the context, its last half is
kept and prefilled again. Where a row's window begins depends on the number of its tokens alone (`window_start`), so a
token is drawn from the same logits however the text came to be split into prompt, batch and chunks.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aigc_jax.errors import DataError, UsageError
from aigc_jax.generation import processors, strategies
from aigc_jax.generation.processors import When, check_count, round_up
from aigc_jax.generation.strategies import Sampling

_LONGEST_CHUNK = 64  # tokens drawn between two looks of the host, at most
_CHUNK_SECONDS = 0.1  # the host looks, and text is shown, about this often


class Generated(NamedTuple):
  """What was drawn. Columns at or past a row's length are 0."""

  tokens: np.ndarray  # [batch, new] int32
  log_probabilities: np.ndarray  # [batch, new] float32, nats, under the model itself: before any strategy
  lengths: np.ndarray  # [batch] int32, the end token included
  # (tokens int32, log-probabilities float32), each [batch, new, n], the likeliest first; None where none were asked for
  alternatives: tuple | None = None


class _State(NamedTuple):
  cache: Any  # the rows' windows, all tokens but the last
  token: Any  # [batch] int32, the last token, not yet fed
  processors: tuple  # the states of the chain of processors


def window_start(count: int, context_length: int | None) -> int:
  """The first of a row's `count` tokens that the next one is drawn from."""
  if context_length is None or count <= context_length:
    return 0
  jump = context_length + 1 - max(1, context_length // 2)
  return jump * -(-(count - context_length) // jump)


def generate(
  decoder,
  params,
  prompts,
  key,
  sampling: Sampling,
  max_new_tokens: int,
  *,
  sources=None,
  vocabulary_size: int | None = None,
  end_token: int | None = None,
  rows=None,
  alternatives: int = 0,
  longest: tuple = (1, 1),
  chunk_size: int = _LONGEST_CHUNK,
  on_chunk: Callable | None = None,
) -> Generated:
  """Continues rows of tokens.

  prompts: for each row its tokens, 1-D, at least one; rows may differ in length.
  key: PRNG key. Row i draws its token t from fold_in(fold_in(key, rows[i]), t), whatever the batch and the chunks.
  sources: for each row the tokens that an encoder reads, 1-D, at least one; None: the decoder has no encoder.
  rows: the rows' numbers, [batch] int; 0, 1, ... where not given.
  vocabulary_size: only the first so many tokens are chosen from; None: all that the model has logits for.
  end_token: ends a row, as its last token; None: every row runs to max_new_tokens.
  alternatives: how many of the likeliest tokens are told beside each that is drawn, under the model itself.
  longest: tokens of the longest prompt and source of all the calls that are to share compiled programs.
  chunk_size: the most tokens drawn between two looks of the host (64 at most); fewer are, where a token takes long.
  on_chunk(tokens [batch, n], log_probabilities [batch, n], first) -> rows to end, [batch] bool, or None: called for
    each chunk, whose first column is the rows' new token number `first`. A row's lengths then say where it ended.

  Raises UsageError for values out of range, before compiling, and DataError for logits that are not finite.
  """
  prompts = [np.asarray(prompt, np.int32).reshape(-1) for prompt in prompts]
  check(sampling, max_new_tokens=max_new_tokens, chunk_size=chunk_size)
  if not prompts or not all(map(len, prompts)):
    raise UsageError('each prompt must have at least one token')
  chance = None if sampling.greedy else (key, np.arange(len(prompts)) if rows is None else np.asarray(rows))
  shapes = _shapes(decoder.context_length, max(longest[0], *map(len, prompts)), max_new_tokens)
  structure, floats, chain = split(sampling)
  memory, sources = None, padded(decoder, sources, len(prompts), longest[1])
  size = decoder.vocabulary_size if vocabulary_size is None else vocabulary_size
  result = Generated(
    np.zeros((len(prompts), max_new_tokens), np.int32),
    np.zeros((len(prompts), max_new_tokens), np.float32),
    np.full(len(prompts), max_new_tokens, np.int32),
    _empty_alternatives(len(prompts), max_new_tokens, alternatives),
  )
  live = np.ones(len(prompts), bool)
  state, left, steps, drawn, longest = None, 0, 1, 0, min(chunk_size, _LONGEST_CHUNK)
  while live.any() and drawn < max_new_tokens:
    if left == 0:
      texts = [np.concatenate(pair) for pair in zip(prompts, result.tokens[:, :drawn], strict=True)]
      inputs = texts, live, state, chain, sources, memory, max_new_tokens - drawn
      state, left, memory = _refill(decoder, size, params, shapes, *inputs)
      sources = None
    count, began = min(steps, left), time.perf_counter()
    when = When(np.int32(drawn), np.int32(max_new_tokens - drawn))
    inputs = memory, floats, chain, chance, when, np.int32(count)
    state, *chunk = _advance(decoder, structure, size, alternatives, params, state, *inputs)
    tokens, log_probabilities, *others = (np.asarray(x)[:, :count] for x in chunk)
    _record(result, tokens, log_probabilities, drawn, end_token)
    for kept, found in zip(result.alternatives or (), others, strict=True):
      kept[:, drawn : drawn + count] = found
    asked = None if on_chunk is None else on_chunk(tokens, log_probabilities, drawn)
    drawn, left = drawn + count, left - count
    if asked is not None:
      result.lengths[asked] = np.minimum(result.lengths[asked], drawn)
    live = result.lengths > drawn
    steps = int(np.clip(count * _CHUNK_SECONDS / (time.perf_counter() - began), 1, longest))
  return _trimmed(result, drawn)


def _empty_alternatives(rows, room, count):
  """Room for what is told beside each token."""
  if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 0:
    raise UsageError(f'alternatives must be a whole number of at least 0, not {count!r}')
  shape = (rows, room, count)
  return (np.zeros(shape, np.int32), np.zeros(shape, np.float32)) if count else None


def check(sampling, **counts):
  """Raises UsageError for a strategy out of range, and for a count that is not a whole number of at least 1."""
  strategies.validate(sampling)
  for name, value in counts.items():
    check_count(name, value)


def check_room(context_length, longest, max_new_tokens):
  """Raises UsageError where a text of `longest` + `max_new_tokens` tokens is more than a model looks back over."""
  if context_length is not None and longest + max_new_tokens > context_length + 1:
    room = context_length + 1 - longest
    fits = f'use a max_new_tokens of at most {room}' if room > 0 else 'shorten the prompt'
    raise UsageError(
      f'max_new_tokens: a prompt of {longest} tokens and {max_new_tokens} more do not fit into the context of '
      f'{context_length}; {fits}'
    )


def split(sampling):
  """(what the program is built from, the numbers it takes, its processors): greedy drops what cannot change it."""
  numbered = lambda leaf: (
    np.float32(leaf) if isinstance(leaf, float) else leaf
  )  # a Python float is weakly typed
  chain = jax.tree.map(numbered, sampling.processors)
  if sampling.greedy:
    sampling = Sampling(greedy=True)
  structure = Sampling(greedy=sampling.greedy, top_k=sampling.top_k)
  floats = {name: getattr(sampling, name) for name in ('temperature', 'top_p', 'min_p')}
  return structure, {name: np.float32(value) for name, value in floats.items() if value is not None}, chain


def padded(decoder, sources, rows, longest=1):
  """(tokens [batch, width], lengths [batch]) of sources, padded on the right to few widths; None without an encoder."""
  if decoder.encode is None:
    return None
  if sources is None or len(sources) != rows or not all(map(len, sources)):
    raise UsageError('each prompt must have a source of at least one token, for this model has an encoder')
  lengths = np.array([len(source) for source in sources], np.int32)
  tokens = np.zeros((rows, width_for(lengths.max(), longest)), np.int32)
  for row, source in enumerate(sources):
    tokens[row, : len(source)] = source
  return tokens, lengths


def _shapes(context, longest, max_new_tokens):
  """[(tokens of a window, slots of its cache)], of which the first that fits is used: two, so that few are compiled."""
  ends = longest + max_new_tokens
  if context is None or ends <= context + 1:
    room = max_new_tokens
  else:  # a window jumps by half a context
    longest, room = min(context, ends), max(context // 2, 16)
  return [(width, round_up(width - 1 + room)) for width in widths(longest)]


def widths(longest):
  """Widths for texts of up to `longest` tokens."""
  return sorted({round_up(-(-longest // 4)), round_up(longest)})


def width_for(count, longest):
  """The width for `count` tokens, among those for texts of up to `longest`."""
  return next(width for width in widths(max(longest, count)) if width >= count)


def _refill(decoder, size, params, shapes, texts, live, state, chain, sources, memory, remaining):
  """(the state with a cache made anew from each row's window, how many tokens may be drawn from it, the memory)."""
  context = decoder.context_length
  windows = [text[window_start(len(text), context) :] for text in texts]
  held = np.array([len(window) for window in windows])
  width, slots = next((width, slots) for width, slots in shapes if width >= held.max())
  left = min(remaining, slots - width + 1)
  if context is not None:
    left = min(left, int((context + 1 - held[live]).min()))
  cache, memory = fill(decoder, slots, params, *all_but_last(windows, width), sources, memory)
  if state is not None:
    return state._replace(cache=cache), left, memory
  last = np.array([text[-1] for text in texts], np.int32)
  return _State(cache, last, processors.start(chain, texts, size, remaining)), left, memory


def all_but_last(texts, width):
  """(tokens int32, mask bool), both [batch, width - 1]: texts without their last token, padded on the left."""
  tokens, mask = np.zeros((len(texts), width - 1), np.int32), np.zeros((len(texts), width - 1), bool)
  for row, text in enumerate(texts):
    tokens[row, width - len(text) :], mask[row, width - len(text) :] = text[:-1], True
  return tokens, mask


def _record(result, tokens, log_probabilities, drawn, end_token):
  """Writes a chunk into the result, and shortens the rows that meet the end token in it."""
  count = tokens.shape[1]
  result.tokens[:, drawn : drawn + count] = tokens
  result.log_probabilities[:, drawn : drawn + count] = log_probabilities
  if end_token is not None:
    ends = tokens == end_token
    first = np.where(ends.any(1), drawn + ends.argmax(1) + 1, result.lengths)
    np.minimum(result.lengths, first, out=result.lengths)
  counted = drawn + np.arange(count) < result.lengths[:, None]
  if not np.isfinite(log_probabilities[counted]).all():
    raise DataError(
      f'the model gave logits that are not finite within new tokens {drawn + 1} to {drawn + count}'
    )


def _trimmed(result, drawn):
  """The first `drawn` columns, with zeros past each row's end."""
  past = np.arange(drawn) >= result.lengths[:, None]
  return Generated(
    np.where(past, 0, result.tokens[:, :drawn]),
    np.where(past, 0, result.log_probabilities[:, :drawn]),
    np.minimum(result.lengths, drawn),
    result.alternatives
    and tuple(np.where(past[:, :, None], 0, array[:, :drawn]) for array in result.alternatives),
  )


@partial(jax.jit, static_argnums=(0, 1))
def fill(decoder, length, params, tokens, mask, sources=None, memory=None):
  """(a cache of `length` positions that has seen tokens [batch, width], the memory of `sources` or the one given).

  The tokens' logits are unused, so never computed. `sources`: from `padded`; None for a decoder alone.
  """
  if sources is not None:
    memory = decoder.encode(params, *sources)
  cache = decoder.init_cache(tokens.shape[0], length)
  return decoder.step(params, cache, tokens, mask, memory)[1], memory


def _uniform(key, rows, drawn):
  """The chance in the chunk's draws, [longest chunk, batch, 2]: made at once, far cheaper than step by step."""

  def of_row(row):
    key_of_row, numbers = jax.random.fold_in(key, row), drawn + jnp.arange(_LONGEST_CHUNK)
    return jax.vmap(lambda n: jax.random.uniform(jax.random.fold_in(key_of_row, n), (2,)))(numbers)

  return jax.vmap(of_row, out_axes=1)(rows)


@partial(jax.jit, static_argnums=(0, 1, 2, 3), donate_argnums=5)
def _advance(
  decoder, structure, size, alternatives, params, state, memory, floats, chain, chance, when, count
):
  """Draws `count` tokens a row: (state, tokens, log-probabilities), the latter two [batch, longest chunk].

  With alternatives, their tokens and log-probabilities too, both [batch, longest chunk, alternatives].
  """
  sampling, uniform = structure._replace(**floats), None if chance is None else _uniform(*chance, when.drawn)

  def step(i, carry):
    state, *told = carry
    logits, cache = decoder.step(params, state.cache, state.token[:, None], None, memory)
    logits = logits[:, -1].astype(jnp.float32)
    here = When(when.drawn + i, when.remaining - i)
    processed = processors.apply(chain, state.processors, logits[:, :size], here)
    token = strategies.choose(processed, sampling, None if uniform is None else uniform[i])
    total = jax.nn.logsumexp(logits, axis=-1)
    new = [token, jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0] - total]
    if alternatives:
      best, columns = strategies.largest(logits[:, :size], alternatives)
      new += [columns, best - total[:, None]]
    state = _State(cache, token, processors.advance(chain, state.processors, token))
    return state, *(held.at[i].set(found) for held, found in zip(told, new, strict=True))

  shape = (_LONGEST_CHUNK, state.token.shape[0])
  empty = [jnp.zeros(shape, jnp.int32), jnp.zeros(shape)]
  empty += [jnp.zeros((*shape, alternatives), array.dtype) for array in empty] if alternatives else []
  state, *told = lax.fori_loop(0, count, step, (state, *empty))
  return state, *(array.swapaxes(0, 1) for array in told)
