"""From arrays of examples to batches: shuffled epochs by random access, and one padded pass for validation."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from aigc_jax.config import fields_of, fill_in, find_field
from aigc_jax.errors import DataError, UsageError

# Of the one shuffle before a split: the same for every data.seed, so that runs can be compared.
SPLIT_SEED = 0
WHOLE = slice(None)  # all rows of a batch, where a part of them could be asked for


def checked(schema, data_config: dict[str, Any]) -> dict[str, Any]:
  """`data_config` with the defaults of `schema` filled in. UsageError for unknown keys and wrong values."""
  fields = fields_of(schema)
  for name in data_config:
    find_field({'data': fields}, f'data.{name}')
  return fill_in(fields, data_config, 'data')


def room(config: dict[str, Any], tokenizer) -> int:
  """Tokens of a text for which `config.data.sequence_length` has room within the tokenizer's frame, or UsageError."""
  length, frame = config['sequence_length'], len(tokenizer.prefix) + len(tokenizer.suffix)
  if length <= frame:
    raise UsageError(
      f'config.data.sequence_length: {length} leaves no room between the {frame} tokens that stand around a text; use '
      f'{frame + 1} or more'
    )
  return length - frame


def shuffled_rows(count: int, batch_size: int, seed: int) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
  """(step, part=WHOLE) -> int32 [rows], [rows]: which of `count` examples a batch has, and of which epoch each is.

  Each epoch has all of them in an order of its own. A batch may reach over the end of an epoch, or over several, so
  that none is lost and all are of one size. The order is numpy's: grain's shuffle searches at least 2**16 places for
  each row, 0.1 ms at 1,000 rows. `part`: which rows of the batch, ascending: those that one process reads.
  """

  @functools.lru_cache(maxsize=2)
  def order(epoch):
    return np.random.default_rng([seed % 2**64, epoch]).permutation(count).astype(np.int32)

  def rows(step, part=WHOLE):
    epochs, places = np.divmod(int(step) * batch_size + np.arange(batch_size)[part], count)
    reached = range(int(epochs[0]), int(epochs[-1]) + 1)
    return np.concatenate([order(epoch)[places[epochs == epoch]] for epoch in reached]), epochs

  return rows


def no_training(step, part=WHOLE):
  del part
  raise ValueError(f'training batch {step} of data that was loaded for validation alone')


def rows_in_order(count: int, batch_size: int, part=WHOLE) -> Iterator[tuple[np.ndarray, int]]:
  """For each batch of `count` examples in order: (which of them `part` of its rows has, how many rows that part is).

  The last batch may have fewer examples than rows.
  """
  for first in range(0, count, batch_size):
    places = first + np.arange(batch_size)[part]
    yield places[places < count], len(places)


def padded_batches(
  arrays: dict[str, np.ndarray], batch_size: int, part=WHOLE
) -> Iterator[dict[str, np.ndarray]]:
  """All rows of `arrays` once, in order, with 'mask' (float32 [batch]); the last batch ends in zeros."""
  for rows, size in rows_in_order(len(next(iter(arrays.values()))), batch_size, part):
    chosen = {name: array[rows] for name, array in arrays.items()}
    yield padded(chosen | {'mask': np.ones(len(rows), np.float32)}, size)


def padded(batch: dict[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
  """A batch whose rows are filled up to `size` with zeros."""
  fill = lambda array: np.zeros((size - len(array), *array.shape[1:]), array.dtype)
  return {name: np.concatenate([array, fill(array)]) for name, array in batch.items()}


def split_rows(name: str, count: int, fraction: float, what: str) -> tuple[np.ndarray, np.ndarray, str]:
  """The examples that train and those that validate, and a sentence for people that says which.

  They are shuffled first, since examples often lie sorted by class. DataError where there are fewer than two.
  """
  if count < 2:
    raise DataError(f'{name}: {count} {what} cannot be split; give two or more, or data.validation_source')
  place = min(max(round(count * (1 - fraction)), 1), count - 1)
  order = np.random.default_rng(SPLIT_SEED).permutation(count)
  sentence = (
    f'after one shuffle, the same for every data.seed, the first {place:,} of {count:,} {what} train, '
    'the rest validate'
  )
  return np.sort(order[:place]), np.sort(order[place:]), sentence
