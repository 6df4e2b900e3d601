"""What a run was trained on: its facts, its licence where it is known, and the data itself, to compare with."""

import re
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.cards.memorization import SEPARATOR, joined, symbols
from aigc_jax.data import batches, corpus, image_arrays, images, pairs, sources
from aigc_jax.errors import DataError

BUNDLED = sources.BUNDLED | pairs.BUNDLED | image_arrays.BUNDLED  # {name: (file, sha256)}
TABLE = sources.BUNDLED_FOLDER / 'SOURCES.md'
LANGUAGES = {'moby_dick': ['en'], 'song_ci': ['zh'], 'en_zh': ['en', 'zh']}  # ISO 639-1
UNKNOWN = 'licence: not known; fill it in'


class Licensed(NamedTuple):
  """A row of the table beside the bundled files."""

  what: str
  form: str
  licence: str


class Split(NamedTuple):
  """Training data and held-out data of one kind."""

  train: Any
  validation: Any


def bundled_table() -> dict[str, Licensed]:
  """{file: Licensed} of the table that is packaged beside the bundled data."""
  rows = {}
  for line in TABLE.read_text(encoding='utf-8').splitlines():
    cells = [cell.strip().replace('\\|', '|') for cell in re.split(r'(?<!\\)\|', line)[1:-1]]
    if len(cells) == 5 and (file := re.fullmatch(r'`(.+)`', cells[0])):
      rows[file[1]] = Licensed(*cells[1:4])
  return rows


def licensed(source: str) -> Licensed | None:
  """What is known of `bundled:NAME`; None of another source."""
  kind, _, name = source.partition(':')
  return bundled_table().get(BUNDLED[name][0]) if kind == 'bundled' and name in BUNDLED else None


def languages(source: str) -> list[str]:
  """Codes of the languages of a bundled text; [] where they are not known."""
  kind, _, name = source.partition(':')
  return LANGUAGES.get(name, []) if kind == 'bundled' else []


def same(facts, *hashes):
  """Raises DataError where the data is not what the run began with, by the SHA-256 of training and validation data."""
  before = [facts.get(name) for name in ('sha256', 'validation_sha256')]
  if any(
    old is not None and new is not None and old != new for old, new in zip(before, hashes, strict=False)
  ):
    raise DataError('it has changed since the run was trained')


def text(config, facts) -> Split:
  """The characters of both splits of a text, int32, documents parted by SEPARATOR. Raises DataError and UsageError."""
  parts = corpus.text_parts(config)
  same(facts, *(part.source.sha256 for part in (parts['train'], parts['validation'])[: _sources(config)]))
  return Split(*(characters(parts[name].pieces()) for name in ('train', 'validation')))


def _sources(config):
  return 2 if config['validation_source'] else 1


def characters(pieces) -> np.ndarray:
  """Pieces of documents -> their code points, int32, SEPARATOR behind each document."""
  documents = [symbols(piece) if not ends else joined([symbols(piece)]) for piece, ends in pieces]
  return np.concatenate([np.zeros(0, np.int32), *documents], dtype=np.int32)


def other_text(source) -> np.ndarray:
  """The characters of all of another source, such as 'text:PATH'."""
  return characters(sources.open_source(source).pieces())


def tokens(config, tokenizer) -> Split:
  """The tokens of both splits, int32; those that stand for no text are SEPARATOR."""
  splits = corpus.read(config, tokenizer, train=True).splits
  return Split(*(plain_tokens(tokenizer, splits[name].tokens) for name in ('train', 'validation')))


def plain_tokens(tokenizer, ids) -> np.ndarray:
  ids = np.asarray(ids).astype(np.int32)
  return np.where(np.isin(ids, tokenizer.special_tokens), np.int32(SEPARATOR), ids)


def pair_texts(config, facts) -> Split:
  """[(source, target)] of both splits, split as they were for training. Raises DataError and UsageError."""
  sha256, train = pairs.read(config, config['source'])
  if config['validation_source']:
    other, validation = pairs.read(config, config['validation_source'])
    same(facts, sha256, other)
  else:
    same(facts, sha256)
    *rows, _ = batches.split_rows(config['source'], len(train), config['validation_fraction'], 'pairs')
    train, validation = ([train[row] for row in chosen.tolist()] for chosen in rows)
  return Split(*([pair[:2] for pair in part] for part in (train, validation)))


def pictures(config, facts) -> Split:
  """Images [n, height, width, channels] of both splits, as they are before any binarization."""
  train, validation, found = images.read(batches.checked(images.ImageData, config) | {'binarization': None})
  same(facts, found['sha256'], found.get('validation_sha256'))
  return Split(train.images, validation.images)
