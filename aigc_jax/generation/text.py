"""From prompts to text: batches of rows, characters made whole, stop strings, one piece at a time."""

import codecs
import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from aigc_jax.errors import UsageError
from aigc_jax.generation import decode
from aigc_jax.generation.strategies import Sampling


class Prompts(NamedTuple):
  """Where text begins that a model is to write."""

  texts: list  # strings, for people
  tokens: list  # int32 arrays, at least one token each: what the model's own text goes on from
  sources: list | None = None  # the tokens that an encoder reads for each; None: the model has none
  dropped: list | None = None  # how many tokens of each text there is no room for; None: 0

  @property
  def longest(self):
    """Tokens of the longest text and source, by which batches share compiled programs."""
    return tuple(max(map(len, texts), default=1) for texts in (self.tokens, self.sources or ()))


def prompts_of(tokenizer, texts) -> Prompts:
  """Text that goes on from each of `texts`; from an empty one, at the beginning of a document.

  Raises UsageError for characters that the tokenizer lacks, and for texts without tokens where none begins a document.
  """
  before = [] if tokenizer.suffix else tokenizer.prefix  # of a tokenizer for models that write
  encoded = [np.array([*before, *ids], np.int32) for ids in tokenizer.encode_all(list(texts))]
  separator = np.array(tokenizer.separator, np.int32)
  if not len(separator) and not all(map(len, encoded)):
    text = next(text for text, ids in zip(texts, encoded, strict=True) if not len(ids))
    raise UsageError(
      f'prompt {text!r}: has no tokens, and the tokenizer has none that a text begins with; give a prompt, as in '
      '--prompt="The"'
    )
  return Prompts(list(texts), [ids if len(ids) else separator for ids in encoded])


class Completion(NamedTuple):
  """One sample. The prompt is not part of its text or tokens."""

  prompt: str
  text: str  # without the stop string
  tokens: list  # ids drawn, those of the stop string or the end-of-text token included
  log_probabilities: list  # nats of each, under the model itself: before temperature and the rest
  finish_reason: str  # 'stop' (a stop string), 'end' (the end-of-text token) or 'length' (max_new_tokens)
  prompt_tokens_dropped: int  # tokens at the prompt's beginning that the model's context had no room for
  score: float | None = None  # of a beam search: the sum of log-probabilities by length ** length_penalty
  alternatives: list | None = None  # for each token, those that were likeliest: [(id, text, log-probability)]


class TextStream:
  """Bytes in, text out, as soon as it is certain: whole characters only, and nothing that may begin a stop string."""

  def __init__(self, stop=()):
    self._decoder = codecs.getincrementaldecoder('utf-8')('replace')
    self._stop = stop
    self._held = ''
    self.stopped = False

  def feed(self, data: bytes) -> str:
    """The text that `data` makes certain; '' once a stop string was met."""
    if self.stopped:
      return ''
    text = self._held + self._decoder.decode(data)
    found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
    if found:  # the stop string that is complete first, so that it matters not how the bytes were split
      self.stopped, self._held = True, ''
      return text[: min(found)[1]]
    held = max((_overlap(text, stop) for stop in self._stop), default=0)
    self._held = text[len(text) - held :]
    return text[: len(text) - held]

  def close(self) -> str:
    """What was held back and turned out to be no stop string. Bytes of an unfinished character are dropped."""
    held, self._held = self._held, ''
    return held


def _overlap(text, stop):
  """How many characters at the end of `text` begin `stop`."""
  for size in range(min(len(stop) - 1, len(text)), 0, -1):
    if text.endswith(stop[:size]):
      return size
  return 0


def generate_text(
  decoder,
  params,
  tokenizer,
  prompts: Prompts,
  *,
  num: int = 1,
  max_new_tokens: int = 200,
  sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
  stop=(),
  seed: int = 0,
  alternatives: int = 0,
  on_text: Callable | None = None,
  batch_size: int = 16,
) -> list[Completion]:
  """Writes from each of `prompts` `num` times; completions in the order of the prompts, samples together.

  A prompt longer than the model's context is continued from its end, as `prompt_tokens_dropped` then says.

  stop: a string or several; text ends before the first that occurs.
  seed: with it a row's number and a token's position decide all chance, whatever else is generated beside.
  on_text(row, piece): called with text as it comes, row = prompt number * num + sample; a row's pieces joined are its
    completion's text.
  alternatives: how many of the likeliest tokens are told beside each that is drawn.
  batch_size: rows generated at once, prompts of similar length together.

  Raises UsageError, before compiling, for values out of range.
  """
  stop = (stop,) if isinstance(stop, str) else tuple(stop)
  _check(stop, seed)
  decode.check(sampling, max_new_tokens=max_new_tokens, num=num, batch_size=batch_size)
  rows = [_row(prompts, n // num, n, TextStream(stop)) for n in range(num * len(prompts.texts))]
  by_length = sorted(rows, key=lambda row: len(row.prompt_tokens) + len(row.source))
  size = math.ceil(len(rows) / math.ceil(len(rows) / batch_size)) if rows else 1
  for first in range(0, len(rows), size):
    batch = by_length[first : first + size]
    filler = dataclasses.replace(batch[-1], number=0, stream=None, finish_reason='filler')
    fillers = [filler] * (size - len(batch))  # one shape, one compilation
    _generate(
      decoder,
      params,
      tokenizer,
      batch + fillers,
      jax.random.key(seed),
      sampling,
      max_new_tokens,
      prompts.longest,
      alternatives,
      on_text,
    )
  return [_complete(row, tokenizer, stop, decoder.context_length) for row in rows]


@dataclasses.dataclass
class _Row:
  """A sample in the making."""

  number: int
  prompt: str
  prompt_tokens: np.ndarray
  source: np.ndarray  # empty without an encoder
  dropped: int
  stream: TextStream | None
  finish_reason: str | None = None
  pieces: list = dataclasses.field(default_factory=list)
  tokens: np.ndarray | None = None
  log_probabilities: np.ndarray | None = None
  alternatives: list | None = None  # arrays [new, n]: tokens, log-probabilities


def _row(prompts, i, number, stream):
  source = np.zeros(0, np.int32) if prompts.sources is None else prompts.sources[i]
  dropped = 0 if prompts.dropped is None else prompts.dropped[i]
  return _Row(number, prompts.texts[i], prompts.tokens[i], source, dropped, stream)


def _generate(
  decoder, params, tokenizer, rows, key, sampling, max_new_tokens, longest, alternatives, on_text
):
  """Generates the rows of one batch, and hands their text on."""

  def on_chunk(tokens, log_probabilities, first):
    last = first + tokens.shape[1] >= max_new_tokens
    for row, new in zip(rows, tokens, strict=True):
      if row.finish_reason is None:
        piece = _take(row, new, last, tokenizer)
        if piece and on_text is not None:
          on_text(row.number, piece)
    return np.array([row.finish_reason is not None for row in rows])

  generated = decode.generate(
    decoder,
    params,
    [row.prompt_tokens for row in rows],
    key,
    sampling,
    max_new_tokens,
    sources=None if decoder.encode is None else [row.source for row in rows],
    vocabulary_size=tokenizer.vocabulary_size,  # a model may have logits to spare
    end_token=tokenizer.end_of_text,
    rows=[row.number for row in rows],
    alternatives=alternatives,
    longest=longest,
    on_chunk=on_chunk,
  )
  for i, row in enumerate(rows):
    length = generated.lengths[i]
    row.tokens, row.log_probabilities = generated.tokens[i, :length], generated.log_probabilities[i, :length]
    if generated.alternatives is not None:
      row.alternatives = [array[i, :length] for array in generated.alternatives]


def _take(row, tokens, last, tokenizer):
  """The text that a row's new tokens make certain; `last`: there will be no more of them."""
  ends = np.flatnonzero(tokens == tokenizer.end_of_text) if tokenizer.end_of_text is not None else ()
  piece = row.stream.feed(tokenizer.decode_bytes(tokens[: ends[0]] if len(ends) else tokens))
  row.finish_reason = 'stop' if row.stream.stopped else 'end' if len(ends) else 'length' if last else None
  if row.finish_reason is not None:
    piece += row.stream.close()
  row.pieces.append(piece)
  return piece


def _complete(row, tokenizer, stop, context_length):
  count = len(row.tokens)
  if row.finish_reason == 'stop':  # within the last chunk; found again token by token
    stream, count = TextStream(stop), 0
    while not stream.stopped:
      stream.feed(tokenizer.decode_bytes(row.tokens[count : count + 1]))
      count += 1
  return Completion(
    row.prompt,
    ''.join(row.pieces),
    row.tokens[:count].tolist(),
    row.log_probabilities[:count].tolist(),
    row.finish_reason,
    row.dropped + decode.window_start(len(row.prompt_tokens), context_length),
    alternatives=None if row.alternatives is None else _told(tokenizer, *row.alternatives)[:count],
  )


def _told(tokenizer, tokens, log_probabilities):
  """[[(id, text, log-probability)]] of arrays [new, n]."""
  pairs = zip(tokens.tolist(), log_probabilities.tolist(), strict=True)
  return [[(i, tokenizer.decode([i]), nats) for i, nats in zip(*pair, strict=True)] for pair in pairs]


def completed(prompt, tokenizer, tokens, log_probabilities, length, dropped) -> Completion:
  """The Completion of a row [new] of which the first `length` tokens count."""
  tokens = tokens[:length]
  ended = tokenizer.end_of_text is not None and tokens[-1] == tokenizer.end_of_text
  text, reason = tokenizer.decode(tokens[:-1] if ended else tokens), 'end' if ended else 'length'
  return Completion(prompt, text, tokens.tolist(), log_probabilities[:length].tolist(), reason, dropped)


def _check(stop, seed):
  if not all(isinstance(text, str) and text for text in stop):
    raise UsageError('a stop string must have at least one character')
  if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
    raise UsageError(f'seed must be a whole number from 0 to 2**32 - 1, not {seed!r}')
