"""Text as batches of tokens to be hidden and found again: windows or packed documents, and where words begin.

Where a pretrained model's tokenizer has a frame for texts, BERT's [CLS] and [SEP], windows stand within it, and so do
documents; of one that is longer than a row the first part has the frame's begin and the last its end.

A word is what white space sets apart, with the white space before it, as in byte-level BPE's own tokens; a Chinese,
Japanese kanji or Korean hanja character is a word of its own, as in BERT's vocabularies (Devlin et al. 2019).
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

import numpy as np

from aigc_jax.config import Positive, Range
from aigc_jax.data import batches, corpus, pipeline, tokenizers
from aigc_jax.data.corpus import Split
from aigc_jax.data.pipeline import Batch, Dataset, Rows
from aigc_jax.data.tokenizers import Tokenizer
from aigc_jax.errors import DataError

# first and last code points of the blocks of unified and compatibility ideographs, in order
IDEOGRAPHS = np.array(
  [(0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F), (0x30000, 0x323AF)]
)
AT_ONCE = 1 << 20  # tokens looked at together
LONGEST_CHARACTER = 4  # bytes of UTF-8, so tokens at most


@dataclasses.dataclass(frozen=True)
class MaskedTextData:
  source: str = 'bundled:moby_dick'  # kind:place, see data/sources.py
  validation_source: str | None = None  # None: the last part of `source`
  # the part that validates, where no validation_source is given
  validation_fraction: Annotated[float, Range('in (0, 1)', above=0, below=1)] = 0.1
  tokenizer: str = 'characters'  # characters, bytes, bpe:SIZE, gpt2; a mask token is added
  sequence_length: Annotated[int, Positive] = 128  # tokens, with those of a frame
  batch_size: Annotated[int, Positive] = 8  # rows of a step, over all devices and microbatches
  # stream: windows of the text, shuffled; documents: whole documents, several to a row
  packing: Literal['stream', 'documents'] = 'stream'
  seed: int = 0  # of the order of the data, and of what is drawn with them
  cache_dir: str | None = None  # where large corpora keep their tokens; None: the user's cache folder


def load(data_config: dict[str, Any], tokenizer: Tokenizer | None = None) -> Dataset:
  """The text that `config.data` describes; `tokenizer`, where given, is used instead of making one.

  A batch holds 'inputs' (int32 [batch, time]), 'word_begins' (bool [batch, time]: the token begins a word), 'mask'
  (float32 [batch, time], 0 at padding) and, where documents are packed, 'segments' (int32 [batch, time]; 1, 2, ... for
  the documents of a row, 0 at padding), else 'lengths' (int32 [batch], tokens of a row). A validation batch holds
  'rows' besides (int32 [batch]: the row's number in its split): what is drawn for a row never depends on its batch.
  The tokenizer has a mask token. Raises UsageError, DataError and StorageError as `pipeline.load`.
  """
  return _load(batches.checked(MaskedTextData, data_config), tokenizer, train=True)


def load_validation(data_config: dict[str, Any], tokenizer: Tokenizer) -> Dataset:
  """As `load`, with all of `source` as the validation split and no training batches: for a trained model."""
  return _load(batches.checked(MaskedTextData, data_config), tokenizer, train=False)


def _load(config, tokenizer, train):
  # the tokens of ordinary text are the same without a mask, and kept in one cache
  plain = None if tokenizer is None else tokenizers.without_mask(tokenizer)
  text = corpus.read(config, plain, train)
  length, batch_size, seed = config['sequence_length'], config['batch_size'], config['seed'] % 2**64
  tokenizer = tokenizers.with_mask(text.tokenizer)
  room = length if config['packing'] == 'documents' else batches.room(config, tokenizer)
  facts = text.facts | {'sequence_length': length, 'vocabulary_size': tokenizer.vocabulary_size}
  parts = {name: _with_begins(split, text.tokenizer) for name, split in text.splits.items()}
  rows_of = lambda part, cut: (
    _packed(part, tokenizer, length) if config['packing'] == 'documents' else _framed(cut(part), tokenizer)
  )
  train_batch = batches.no_training
  if train:
    _check_length(config, text.splits['train'], room)
    rows = rows_of(parts['train'], lambda part: pipeline.shifting_windows(part, room, seed))
    chosen, read = batches.shuffled_rows(rows.count, batch_size, seed), rows.read
    train_batch = lambda step, part=batches.WHOLE: read(*chosen(step, part))
    facts['steps_per_epoch'] = round(rows.count / batch_size, 2)
  validation = rows_of(parts['validation'], lambda part: pipeline.windows(part, room))
  return Dataset(
    tokenizer,
    train_batch,
    _validation_batches(validation, batch_size),
    -(-validation.count // batch_size),
    facts,
  )


def _check_length(config, split, room):
  """`room`: tokens of the text that a window holds."""
  tokens, frame = len(split.tokens), config['sequence_length'] - room
  if tokens < room:
    raise DataError(
      f'{config["source"]}: the training part has {tokens:,} tokens, too few for a window of {room:,}: use a longer '
      f'text or data.sequence_length={tokens + frame} or less'
    )


def _with_begins(split: Split, tokenizer: Tokenizer) -> Split:
  """A split whose tokens are 2 x token + whether it begins a word, so that rows of both are cut at once.

  One more follows them: rows of `pipeline` are inputs and the token after each, so all are inputs then.
  """
  both = np.zeros(len(split.tokens) + 1, np.uint32)
  both[:-1] = split.tokens
  both[:-1] = 2 * both[:-1] + word_begins(split.tokens, tokenizer)
  return Split(both, split.documents)


def _packed(part: Split, tokenizer: Tokenizer, length: int) -> Rows:
  """Rows of whole documents from a split of `_with_begins`."""
  rows = pipeline.packed_rows(part, length)
  # each begins behind a separator, which is no part of it but where it ends in the token that texts begin with
  name = 'inputs' if tokenizer.prefix else 'targets'

  def read(numbers, epochs) -> Batch:
    found = rows.read(numbers, epochs)
    both = found[name]
    batch = {'inputs': both >> 1, 'word_begins': both % 2 == 1}
    return batch | {'mask': found['mask'], 'segments': found['segments']}

  return Rows(rows.count, read)


def _framed(rows: Rows, tokenizer: Tokenizer) -> Rows:
  """Windows within the tokenizer's frame, from rows of a split of `_with_begins`."""
  before, after = (2 * np.array(part, np.int32) + 1 for part in (tokenizer.prefix, tokenizer.suffix))

  def read(numbers, epochs) -> Batch:
    found = rows.read(numbers, epochs)
    counts = found['mask'].sum(1).astype(np.int32)  # [batch]
    lengths = counts + len(before) + len(after)
    both = np.pad(found['inputs'], ((0, 0), (len(before), len(after))))  # [batch, time]
    both[:, : len(before)] = before
    behind = len(before) + counts[:, None] + np.arange(len(after))
    np.put_along_axis(both, behind, np.broadcast_to(after, behind.shape), 1)
    mask = (np.arange(both.shape[1]) < lengths[:, None]).astype(np.float32)
    return {'inputs': both >> 1, 'word_begins': both % 2 == 1, 'mask': mask, 'lengths': lengths}

  return Rows(rows.count, read)


def _validation_batches(rows: Rows, batch_size: int) -> Callable[..., Iterator[Batch]]:
  def validation_batches(part=batches.WHOLE):
    for chosen, size in batches.rows_in_order(rows.count, batch_size, part):
      batch = rows.read(chosen, np.zeros_like(chosen)) | {'rows': chosen.astype(np.int32)}
      yield batches.padded(batch, size)

  return validation_batches


def word_begins(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
  """Which of a text's tokens begin a word, [tokens] -> [tokens] bool. A token within a character never does."""
  begins = np.zeros(len(tokens), bool)
  for first in range(0, len(tokens), AT_ONCE):
    start = max(
      first - LONGEST_CHARACTER, 0
    )  # the character before, and the rest of the last one, are seen too
    seen = _begins(tokens[start : first + AT_ONCE + LONGEST_CHARACTER], tokenizer)
    begins[first : first + AT_ONCE] = seen[first - start :][:AT_ONCE]
  return begins


def _begins(tokens, tokenizer):
  ends = np.isin(tokens, tokenizer.special_tokens)  # and what else stands for no text
  pieces = [
    b'\n' if end else tokenizer.pieces[i] for i, end in zip(tokens.tolist(), ends.tolist(), strict=True)
  ]
  sizes = np.array([len(piece) for piece in pieces])
  starts = np.cumsum(sizes) - sizes  # the first byte of each token
  text = b''.join(pieces)
  leads = np.frombuffer(text, np.uint8) & 0xC0 != 0x80  # bytes that begin a character
  characters = text[int(leads.argmax()) :].decode('utf-8', 'replace')
  at = np.maximum(np.cumsum(leads)[starts] - 1, 0)  # the character that each token begins with, or within
  begins = _character_begins(characters)[at] & leads[starts]
  return begins | ends | np.concatenate([[True], ends[:-1]])


def _character_begins(text):
  """Which characters begin a word, [characters] bool."""
  points = np.frombuffer(text.encode('utf-32-le'), np.uint32)
  spaces = np.array([ord(c) for c in set(text) if c.isspace()], np.uint32)
  space = np.isin(points, spaces)
  block = np.searchsorted(IDEOGRAPHS[:, 0], points, side='right') - 1
  ideograph = (block >= 0) & (points <= IDEOGRAPHS[block, 1])
  after_space, after_ideograph = (np.concatenate([[False], kind[:-1]]) for kind in (space, ideograph))
  begins = np.where(space | ideograph, ~after_space, after_ideograph)
  begins[:1] = True
  return begins
