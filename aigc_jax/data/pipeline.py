"""From token arrays to batches: `train_batch(step)` is a pure function of (data.seed, step)."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from aigc_jax.config import Positive, Range
from aigc_jax.data import batches, corpus
from aigc_jax.data.corpus import Split
from aigc_jax.data.tokenizers import Tokenizer
from aigc_jax.errors import DataError
from aigc_jax.task import RESIDENT

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TextData:
  source: str = 'bundled:moby_dick'  # kind:place, see data/sources.py
  validation_source: str | None = None  # None: the last part of `source`
  # the part that validates, where no validation_source is given
  validation_fraction: Annotated[float, Range('in (0, 1)', above=0, below=1)] = 0.1
  tokenizer: str = 'characters'  # characters, bytes, bpe:SIZE, gpt2
  sequence_length: Annotated[int, Positive] = 128  # tokens
  batch_size: Annotated[int, Positive] = 8  # rows of a step, over all devices and microbatches
  # stream: windows of the text, shuffled; contiguous: row i of a batch goes on where row i of the last one ended;
  # documents: whole documents, several to a row
  packing: Literal['stream', 'contiguous', 'documents'] = 'stream'
  seed: int = 0  # of the order of the data, and of what is drawn with them
  cache_dir: str | None = None  # where large corpora keep their tokens; None: the user's cache folder


class Dataset(NamedTuple):
  """Examples as batches; those of text are [batch_size, sequence_length], of images see `images.load`.

  A batch of text holds 'inputs' and 'targets' (int32; each target is the token after its input), 'mask' (float32, 0
  at padding) and, where documents are packed, 'segments' (int32; 1, 2, ... for the documents of a row, 0 at
  padding); where rows go on from batch to batch, 'begins' [batch] (float32) is 1 for those that begin anew. A
  validation batch holds 'characters' besides (float32: how many each target stands for, 0 at padding). The arrays
  are the caller's: nothing else keeps or changes them.
  """

  tokenizer: Tokenizer | None  # None: no text
  # Both give a part of each batch's rows where they are asked for it (`part`, see `batches.shuffled_rows`).
  train_batch: Callable[..., Batch]  # step, part=WHOLE -> batch
  validation_batches: Callable[
    ..., Iterator[Batch]
  ]  # part=WHOLE -> the split once, in order; the last is padded
  validation_size: int  # batches
  facts: dict[str, Any]  # for people
  # arrays that lie on the device for the whole run; a step sees them in its batch, under 'resident'
  resident: Batch | None = None
  shapes: Callable[[], list[Batch]] | None = None  # a batch of each shape that trains; None: all have one
  pairs: tuple[tuple[str, str], ...] = ()  # (source, target) of the validation split, as texts

  def example(self) -> Batch:
    """The first training batch as a step sees it, with the resident arrays."""
    batch = self.train_batch(0)
    return batch if self.resident is None else batch | {RESIDENT: self.resident}


class Rows(NamedTuple):
  """A split cut into rows of `sequence_length` targets."""

  count: int  # rows of an epoch
  read: Callable[[np.ndarray, np.ndarray], Batch]  # (rows [n], their epochs [n]) -> batch of n


def load(data_config: dict[str, Any], tokenizer: Tokenizer | None = None) -> Dataset:
  """The data that `config.data` describes; `tokenizer`, where given, is used instead of making one.

  The character vocabulary is that of the whole corpus, as in nanoGPT; BPE is trained on the training split.
  Raises UsageError (config), DataError (files, text too short), StorageError (the cache cannot be written).
  """
  config = batches.checked(TextData, data_config)
  return _dataset(config, corpus.read(config, tokenizer, train=True))


def load_validation(data_config: dict[str, Any], tokenizer: Tokenizer) -> Dataset:
  """As `load`, with all of `source` as the validation split and no training batches: for a trained model."""
  config = batches.checked(TextData, data_config)
  return _dataset(config, corpus.read(config, tokenizer, train=False))


def _dataset(config, text):
  length, batch_size, seed = config['sequence_length'], config['batch_size'], config['seed'] % 2**64
  for name, split in text.splits.items():
    _check_length(config, name, split)
  counts = text.tokenizer.character_counts
  documents = config['packing'] == 'documents'
  facts, train_batch = text.facts | {'sequence_length': length}, batches.no_training
  if 'train' in text.splits:
    train = text.splits['train']
    if config['packing'] == 'contiguous':
      train_batch, steps = contiguous(config, train, length, batch_size)
    else:
      rows = packed_rows(train, length) if documents else shifting_windows(train, length, seed)
      rows_of, read = batches.shuffled_rows(rows.count, batch_size, seed), rows.read
      train_batch = lambda step, part=batches.WHOLE: read(*rows_of(step, part))
      steps = rows.count / batch_size
    facts = facts | {'steps_per_epoch': round(steps, 2)}
  validation = text.splits['validation']
  parts = batch_size if config['packing'] == 'contiguous' else 1
  rows = packed_rows(validation, length) if documents else windows(validation, length, parts)
  validation_size = -(-rows.count // batch_size)

  def validation_batches(part=batches.WHOLE):
    for i, (chosen, size) in enumerate(batches.rows_in_order(rows.count, batch_size, part)):
      batch = rows.read(chosen, np.zeros_like(chosen))
      batch['characters'] = counts[batch['targets']] * batch['mask']
      batch = batches.padded(batch, size)
      if config['packing'] == 'contiguous':
        batch['begins'] = np.full(size, i == 0, np.float32)
      yield batch

  return Dataset(text.tokenizer, train_batch, validation_batches, validation_size, facts)


def _check_length(config, name, split):
  tokens, length = len(split.tokens), config['sequence_length']
  least = length + 1 if name == 'train' else 2  # a validation split may end in a part of a window
  if tokens < least:
    source = (name == 'validation' and config['validation_source']) or config['source']
    advice = f' or data.sequence_length={tokens - 1} or less' if name == 'train' and tokens > 1 else ''
    part = 'training' if name == 'train' else 'validation'
    raise DataError(
      f'{source}: the {part} part has {tokens:,} tokens, too few for a window of {least:,}'
      f'{f" (data.sequence_length={length} and the token after)" if name == "train" else ""}: '
      f'use a longer text{advice}'
    )


def shifting_windows(split: Split, length: int, seed: int) -> Rows:
  """Whole windows that follow each other from an offset which differs between epochs.

  Within an epoch no target comes twice; fewer than two windows' worth of them, at the two ends, are left out.
  """
  targets = len(split.tokens) - 1
  count = max(1, (targets + 1 - length) // length)
  offsets = min(length, targets + 1 - count * length)  # how many there are to choose from

  @functools.lru_cache(maxsize=2)
  def offset(epoch):
    return np.random.default_rng([seed, epoch, 1]).integers(offsets)

  def read(rows, epochs):
    starts = rows * length + np.array([offset(epoch) for epoch in epochs.tolist()])  # [batch]
    tokens = split.tokens[starts[:, None] + np.arange(length + 1)].astype(np.int32)  # [batch, time + 1]
    return {
      'inputs': np.ascontiguousarray(tokens[:, :-1]),
      'targets': np.ascontiguousarray(tokens[:, 1:]),
      'mask': np.ones((len(rows), length), np.float32),
    }

  return Rows(count, read)


def contiguous(config, split: Split, length: int, batch_size: int):
  """(step -> batch, steps of an epoch): row i of each batch goes on where row i of the last one ended.

  Each row reads a part of its own, all of them equally long, from beginning to end, epoch after epoch; 'begins'
  [batch] is 1 where it begins anew. Fewer than batch_size windows' worth of targets at the end are left out.
  """
  steps = (len(split.tokens) - 1) // (batch_size * length)
  if not steps:
    raise DataError(
      f'{config["source"]}: the training part has {len(split.tokens):,} tokens, too few for {batch_size} rows that '
      f'each go on from batch to batch with windows of {length}: use a longer text, or a smaller data.batch_size'
    )
  starts = np.arange(batch_size) * steps * length  # [batch]

  def train_batch(step, part=batches.WHOLE):
    place = int(step) % steps
    begins = starts[part] + place * length
    tokens = split.tokens[begins[:, None] + np.arange(length + 1)].astype(np.int32)
    return {
      'inputs': np.ascontiguousarray(tokens[:, :-1]),
      'targets': np.ascontiguousarray(tokens[:, 1:]),
      'mask': np.ones((len(begins), length), np.float32),
      'begins': np.full(len(begins), place == 0, np.float32),
    }

  return train_batch, steps


def windows(split: Split, length: int, parts: int = 1) -> Rows:
  """Every target of the split once. The split is cut into `parts`, whose windows come in turn; each ends in padding."""
  targets = len(split.tokens) - 1
  size = -(-targets // parts)  # targets of a part

  def read(rows, epochs):
    del epochs
    turn, part = np.divmod(rows, parts)
    within = (turn * length)[:, None] + np.arange(length)  # [batch, time]
    places = (part * size)[:, None] + within
    inside = (within < size) & (places < targets)
    places = np.where(inside, places, 0)
    return {
      'inputs': np.where(inside, split.tokens[places], 0).astype(np.int32),
      'targets': np.where(inside, split.tokens[places + 1], 0).astype(np.int32),
      'mask': inside.astype(np.float32),
    }

  return Rows(-(-size // length) * parts, read)


def packed_rows(split: Split, length: int) -> Rows:
  """Every target of the split once: whole documents, several to a row, long ones cut into windows.

  A document's last target is the end of its separator, so no target lies in another document than its input.
  """
  sizes = np.diff(split.documents)
  pieces = -(-sizes // length)  # [documents]
  within = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
  starts = np.repeat(split.documents[:-1], pieces) + within * length  # [pieces]
  sizes = np.minimum(np.repeat(split.documents[1:], pieces) - starts, length)
  row_of = best_fit(sizes, length)
  order = np.argsort(row_of, kind='stable')
  starts, sizes = starts[order].tolist(), sizes[order].tolist()
  first = np.searchsorted(row_of[order], np.arange(row_of.max() + 2)).tolist()  # [rows + 1]

  def read(rows, epochs):
    del epochs
    shape = (len(rows), length)
    inputs, targets, segments = (np.zeros(shape, np.int32) for _ in range(3))
    for i, row in enumerate(rows.tolist()):
      column = 0
      for segment, piece in enumerate(range(first[row], first[row + 1]), 1):
        start, size = starts[piece], sizes[piece]
        end = column + size
        inputs[i, column:end] = split.tokens[start : start + size]
        targets[i, column:end] = split.tokens[start + 1 : start + size + 1]
        segments[i, column:end] = segment
        column = end
    mask = (segments > 0).astype(np.float32)
    return {'inputs': inputs, 'targets': targets, 'mask': mask, 'segments': segments}

  return Rows(len(first) - 1, read)


def best_fit(sizes: np.ndarray, capacity: int) -> np.ndarray:
  """The row of each item, [items] -> [items]: largest first, into the fullest row that has room.

  Rows are numbered by the first item in each, so that they follow the order of the items.
  """
  rooms: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the room they have left
  room_sizes = np.zeros(capacity + 1, bool)  # which of these lists are not empty
  row_of = np.zeros(len(sizes), np.int64)
  count = 0
  for item in np.argsort(-sizes, kind='stable').tolist():
    size = int(sizes[item])
    room = size + int(room_sizes[size:].argmax())
    if room_sizes[room]:
      row = rooms[room].pop()
      room_sizes[room] = bool(rooms[room])
    else:
      row, room, count = count, capacity, count + 1
    row_of[item] = row
    if room > size:
      rooms[room - size].append(row)
      room_sizes[room - size] = True
  _, firsts = np.unique(row_of, return_index=True)
  return np.argsort(np.argsort(firsts))[row_of]
