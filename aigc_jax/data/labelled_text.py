"""Labelled text as batches: `tsv:PATH` and `jsonl:PATH`, one text and its class on each line, as `records` has them.

`bundled:song_ci` is JSON lines: poems, by `author` or by `title`, their tune.
"""

import collections
import dataclasses
import functools
from collections.abc import Container, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np

from aigc_jax.config import Positive, Range
from aigc_jax.data import batches, records, sources, tokenizers
from aigc_jax.data.pipeline import Dataset
from aigc_jax.data.tokenizers import Tokenizer
from aigc_jax.errors import DataError, listed, nearest

KINDS = records.KINDS | {'bundled': 'bundled:song_ci'}
BUNDLED = {name: found for name, found in sources.BUNDLED.items() if found[0].endswith('.jsonl.gz')}


@dataclasses.dataclass(frozen=True)
class LabelledTextData:
  source: str = 'tsv:texts.tsv'  # tsv:PATH or jsonl:PATH
  validation_source: str | None = None  # None: a part of `source`
  # the part that validates, where no validation_source is given
  validation_fraction: Annotated[float, Range('in (0, 1)', above=0, below=1)] = 0.1
  label_field: str = 'label'  # the name of the JSON field or column, or a column's number from 1
  text_field: str = 'text'  # the name of the JSON field or column, or a column's number from 1
  most_frequent_classes: Annotated[int, Positive] | None = (
    None  # texts of all others are left out; None: none
  )
  tokenizer: str = 'characters'  # characters, bytes, bpe:SIZE, gpt2
  sequence_length: Annotated[int, Positive] = 128  # tokens; longer texts are cut
  batch_size: Annotated[int, Positive] = 32  # texts of a step, over all devices and microbatches
  seed: int = 0  # of the order of the data, and of what is drawn with them


class Example(NamedTuple):
  text: str
  label: str
  where: str  # file and line, for errors


def load(data_config: dict[str, Any], tokenizer: Tokenizer | None = None) -> Dataset:
  """The texts and classes that `config.data` describes; `tokenizer`, where given, is used instead of making one.

  A batch holds 'inputs' (int32 [batch, time], 0 behind the text), 'lengths' and 'labels' (int32 [batch]) and 'mask'
  (float32 [batch], 0 at the padding of the last validation batch). Class names are those of the training part, sorted.
  The character vocabulary is that of all texts; BPE is trained on the training part.
  Raises UsageError (config) and DataError (files, a class that only validates, characters outside the vocabulary).
  """
  config = batches.checked(LabelledTextData, data_config)
  if tokenizer is None:
    tokenizers.check(config['tokenizer'])
  sha256, train = read(config, config['source'])
  frequent = collections.Counter(example.label for example in train).most_common(
    config['most_frequent_classes']
  )
  train = of_classes(config, train, dict(frequent))
  facts = {'source': config['source'], 'sha256': sha256}
  if config['validation_source']:
    facts['validation_source'] = config['validation_source']
    facts['validation_sha256'], validation = read(config, config['validation_source'])
    validation = of_classes(config, validation, dict(frequent))
    split = 'validation has a source of its own'
  else:
    *rows, split = batches.split_rows(config['source'], len(train), config['validation_fraction'], 'texts')
    train, validation = ([train[row] for row in chosen.tolist()] for chosen in rows)
  if tokenizer is None:
    alphabet = ''.join({character for example in train + validation for character in example.text})
    texts = lambda: (example.text for example in train)
    tokenizer = tokenizers.build(config['tokenizer'], alphabet, texts)
  class_names = tuple(sorted({example.label for example in train}))
  return _dataset(config, tokenizer, class_names, train, validation, facts | {'split': split})


def load_validation(data_config: dict[str, Any], tokenizer: Tokenizer, class_names: Sequence[str]) -> Dataset:
  """As `load`, with all of `source` for validation and no training batches: for a trained model of `class_names`."""
  config = batches.checked(LabelledTextData, data_config)
  sha256, examples = read(config, config['source'])
  examples = of_classes(config, examples, class_names)
  facts = {'source': config['source'], 'sha256': sha256, 'split': 'all of it validates'}
  return _dataset(config, tokenizer, tuple(class_names), None, examples, facts)


def read(config: dict[str, Any], name: str) -> tuple[str, list[Example]]:
  """The sha256 of the file of `name` and its examples in order. Raises UsageError and DataError."""
  kind, place = sources.parted(name, KINDS)
  if kind == 'bundled':
    kind, (path, sha256) = 'jsonl', sources.find_bundled(name, place, BUNDLED)
  else:
    path, sha256 = records.open_lines(name, kind, place)
  fields = {option: config[option] for option in ('label_field', 'text_field')}
  found = records.read(kind, path, fields, numbers=('label_field',))
  examples = [Example(text, label, where) for (label, text), where in found]
  if not examples:
    raise DataError(f'{name}: {path} holds no text')
  return sha256, examples


def of_classes(config: dict[str, Any], examples: list[Example], classes: Container[str]) -> list[Example]:
  """Where `most_frequent_classes` is set, the examples of `classes` alone. DataError where there is none."""
  if config['most_frequent_classes'] is None:
    return examples  # a class that is not known is an error then
  if not (kept := [example for example in examples if example.label in classes]):
    raise DataError(f'{examples[0].where}: no text here or below is of a class that was kept in training')
  return kept


def _dataset(config, tokenizer, class_names, train, validation, facts):
  batch_size = config['batch_size']
  parts = {name: part for name, part in (('train', train), ('validation', validation)) if part is not None}
  arrays = {name: _arrays(config, tokenizer, class_names, part) for name, part in parts.items()}
  counts = {name: len(part) for name, part in parts.items()}
  facts = facts | {
    'size': f'{" and ".join(f"{n:,}" for n in counts.values())} texts in {len(class_names)} classes',
    'tokenizer': tokenizer.name,
    'vocabulary_size': tokenizer.vocabulary_size,
    'classes': len(class_names),
    'class_names': list(class_names),
    **{f'{name}_texts': count for name, count in counts.items()},
    'cut_texts': sum(part.pop('cut') for part in arrays.values()),  # longer than data.sequence_length
  }
  size = -(-counts['validation'] // batch_size)
  validation_batches = functools.partial(batches.padded_batches, arrays['validation'], batch_size)
  if train is None:
    return Dataset(tokenizer, batches.no_training, validation_batches, size, facts)
  facts['steps_per_epoch'] = round(counts['train'] / batch_size, 2)
  rows_of = batches.shuffled_rows(counts['train'], batch_size, config['seed'])

  def train_batch(step, part=batches.WHOLE):
    rows, _ = rows_of(step, part)
    mask = np.ones(len(rows), np.float32)
    return {name: array[rows] for name, array in arrays['train'].items()} | {'mask': mask}

  return Dataset(tokenizer, train_batch, validation_batches, size, facts)


def _arrays(config, tokenizer, class_names, examples):
  """Inputs, lengths and labels of all examples, and how many texts are cut."""
  records.check_alphabet(tokenizer, ((example.text, example.where) for example in examples))
  length, room = config['sequence_length'], batches.room(config, tokenizer)
  places = {name: i for i, name in enumerate(class_names)}
  inputs = np.zeros((len(examples), length), np.int32)  # [texts, time]
  lengths, labels = (np.zeros(len(examples), np.int32) for _ in range(2))
  cut = 0
  ids = tokenizer.encode_all([example.text for example in examples])
  for i, (tokens, example) in enumerate(zip(ids, examples, strict=True)):
    if example.label not in places:
      hint = nearest(example.label, class_names) or f'there are {listed(class_names[:8])}'
      raise DataError(f'{example.where}: class {example.label!r} is none of those that train; {hint}')
    labels[i] = places[example.label]
    cut += len(tokens) > room
    tokens = tokenizer.framed(tokens[:room])
    lengths[i] = len(tokens)
    inputs[i, : lengths[i]] = tokens
  return {'inputs': inputs, 'lengths': lengths, 'labels': labels, 'cut': cut}
