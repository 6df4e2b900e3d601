"""From sources to token arrays: the split by position, the tokenizer, and the cache of a large corpus.

Documents lie one after another in one array. Where a source has several, each is followed by the tokenizer's
separator and the first is preceded by the separator's last token: every token of a document is a target, and
a document looks the same wherever it lies.
"""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.data import cache, tokenizers
from aigc_jax.data.sources import Piece, Source, open_source
from aigc_jax.data.tokenizers import Tokenizer
from aigc_jax.errors import DataError, StorageError

FORMAT = 4  # of the cached arrays
CACHED_FROM = 8 << 20  # bytes of text; less is tokenized at each start
BATCH_CHARACTERS = 1 << 22  # given to the tokenizer at once, for its threads


class Split(NamedTuple):
  """Tokens of one split. Document i is the targets from `documents[i]` + 1 through `documents[i + 1]`."""

  tokens: np.ndarray  # [tokens] uint16 or uint32
  documents: np.ndarray  # [documents + 1] int64


class Corpus(NamedTuple):
  tokenizer: Tokenizer
  splits: dict[str, Split]  # 'train' (not where all is for validation) and 'validation'
  facts: dict[str, Any]


class Survey(NamedTuple):
  lengths: np.ndarray  # [documents] int64, characters
  alphabet: str  # the distinct characters


class Part(NamedTuple):
  """The characters of `source` from `start` to `stop` (not counted)."""

  source: Source
  start: int
  stop: int
  separated: bool  # the source has several documents

  def pieces(self) -> Iterator[Piece]:
    position = 0
    for text, ends in self.source.pieces():
      first, last = self.start - position, self.stop - position
      position += len(text)
      if first < len(text):
        yield Piece(text[max(first, 0) : last], ends or position >= self.stop)
      if position >= self.stop:
        return


def read(config: dict[str, Any], tokenizer: Tokenizer | None, train: bool) -> Corpus:
  """The corpus of a resolved `config.data`; with `train` False all of the source is for validation."""
  if tokenizer is None:
    tokenizers.check(config['tokenizer'])
  sources = {'train': open_source(config['source'])}
  if not train:
    sources = {'validation': sources['train']}
  elif config['validation_source']:
    sources['validation'] = open_source(config['validation_source'])
  make = functools.partial(_make, config, sources, tokenizer)
  if sum(source.size for source in sources.values()) < CACHED_FROM:
    return make(None)
  folder = Path(config['cache_dir']).expanduser() if config['cache_dir'] else cache.default_folder()
  folder, found = cache.remembered(_cache_place(folder / 'tokens', config, sources, tokenizer), make)
  splits = {
    name: Split(np.load(folder / f'{name}.npy', mmap_mode='r'), np.load(folder / f'{name}_documents.npy'))
    for name in ('train', 'validation')
    if (folder / f'{name}.npy').exists()
  }
  facts = json.loads((folder / 'facts.json').read_text(encoding='utf-8'))
  facts |= _names(sources)  # the text may have been elsewhere when the cache was written
  facts['cache'] = f'{folder} ({"found" if found else "written"})'
  return Corpus(tokenizer or tokenizers.load(folder / 'tokenizer.json'), splits, facts)


def _cache_place(root, config, sources, tokenizer):
  """The folder of a corpus' tokens: named by its sources and what the config says of the tokenizer.

  A given tokenizer is most often the one that was made for these very tokens; for another there is a folder of its own.
  """

  def place(tokenizer):
    description = {
      'format': FORMAT,
      'sources': [(name, source.sha256, source.reading) for name, source in sources.items()],
      'validation_fraction': config['validation_fraction'],
      'tokenizer': tokenizer,
    }
    return root / hashlib.sha256(json.dumps(description).encode('utf-8')).hexdigest()[:32]

  if tokenizer is None:
    return place(config['tokenizer'])
  made = place(tokenizer.name)
  with contextlib.suppress(StorageError):
    if tokenizers.load(made / 'tokenizer.json').sha256 == tokenizer.sha256:
      return made
  return place(tokenizer.sha256)


def _make(config, sources, tokenizer, folder):
  """Reads, splits and tokenizes: into memory, or into the files of `folder`."""
  surveys = {name: survey(source) for name, source in sources.items()}
  parts, split = _parts(sources, surveys, config['validation_fraction'])
  alphabet = ''.join({character for s in surveys.values() for character in s.alphabet})
  if tokenizer is None:
    texts = lambda: (piece.text for piece in parts['train' if 'train' in parts else 'validation'].pieces())
    separated = any(part.separated for part in parts.values())
    tokenizer = tokenizers.build(config['tokenizer'], alphabet, texts, separated)
  _check_alphabet(sources, alphabet, tokenizer)
  dtype = np.uint16 if tokenizer.vocabulary_size <= 1 << 16 else np.uint32
  splits = {}
  for name, part in parts.items():
    documents = [0]
    chunks = (ids.astype(dtype) for ids in _tokens(part, tokenizer, documents))
    if folder is None:
      tokens = np.concatenate([np.zeros(0, dtype), *chunks])
    else:
      cache.write_array(folder / f'{name}.npy', chunks, dtype)
      np.save(folder / f'{name}_documents.npy', np.array(documents, np.int64))
      tokens = np.load(folder / f'{name}.npy', mmap_mode='r')
    splits[name] = Split(tokens, np.array(documents, np.int64))
  facts = _facts(sources, surveys, split, tokenizer, splits)
  if folder is not None:
    tokenizer.save(folder / 'tokenizer.json')
    (folder / 'facts.json').write_text(json.dumps(facts), encoding='utf-8')
  return Corpus(tokenizer, splits, facts)


def survey(source: Source) -> Survey:
  """Lengths of the documents and their alphabet. DataError where there is no text."""
  lengths, length = [], 0
  seen = np.zeros(0x110000, bool)
  for text, ends in source.pieces():
    seen[np.frombuffer(text.encode('utf-32-le'), np.uint32)] = True
    length += len(text)
    if ends:
      lengths.append(length)
      length = 0
  if not sum(lengths):
    raise DataError(f'{source.name}: holds no text')
  return Survey(np.array(lengths, np.int64), ''.join(map(chr, np.flatnonzero(seen))))


def _parts(sources, surveys, fraction):
  """{split: Part}, and a sentence for people that says where they meet."""
  whole = {
    name: Part(source, 0, int(surveys[name].lengths.sum()), len(surveys[name].lengths) > 1)
    for name, source in sources.items()
  }
  if list(whole) != ['train']:
    return whole, 'all of it' if len(whole) == 1 else 'validation has a source of its own'
  lengths, part = surveys['train'].lengths, whole['train']
  position = int(part.stop * (1 - fraction))
  sentence = f'the first {position:,} of {part.stop:,} characters train, the rest validates'
  if part.separated:
    ends = np.cumsum(lengths)[:-1]
    count = int(np.abs(ends - position).argmin()) + 1
    position = int(ends[count - 1])
    share = f'{position / part.stop:.1%} of the characters'
    sentence = f'the first {count:,} of {len(lengths):,} documents train ({share}), the rest validate'
  return {'train': part._replace(stop=position), 'validation': part._replace(start=position)}, sentence


def _check_alphabet(sources, alphabet, tokenizer):
  known = tokenizer.saved.get('characters')
  unknown = sorted(set(alphabet) - set(known)) if known else ()
  if unknown:
    names = ', '.join(source.name for source in sources.values())
    raise DataError(
      f'{names}: {len(unknown):,} of its characters are outside the vocabulary of {len(known):,} characters: '
      f'{tokenizers.listed(unknown)}'
    )


def _tokens(part, tokenizer, documents):
  """Chunks of tokens of `part`; appends to `documents` where each document ends."""
  # a pretrained model that has a token before each text has it before the only one too
  separated = part.separated or bool(tokenizer.prefix)
  separator = np.array(tokenizer.separator if separated else (), np.int32)
  position = len(separator[-1:])
  yield separator[-1:]
  for batch in _batches(part.pieces()):
    for ids, piece in zip(tokenizer.encode_all([piece.text for piece in batch]), batch, strict=True):
      yield ids
      position += len(ids)
      if piece.ends:
        yield separator
        position += len(separator)
        documents.append(position - 1)


def _batches(pieces):
  batch, size = [], 0
  for piece in pieces:
    batch.append(piece)
    size += len(piece.text)
    if size >= BATCH_CHARACTERS:
      yield batch
      batch, size = [], 0
  yield batch


def _names(sources):
  return dict(zip(('source', 'validation_source'), (s.name for s in sources.values()), strict=False))


def _facts(sources, surveys, split, tokenizer, splits):
  hashes = zip(('sha256', 'validation_sha256'), (s.sha256 for s in sources.values()), strict=False)
  return {
    **_names(sources),
    **dict(hashes),
    'documents': sum(len(s.lengths) for s in surveys.values()),
    'characters': int(sum(s.lengths.sum() for s in surveys.values())),
    'size': f'{int(sum(s.lengths.sum() for s in surveys.values())):,} characters',
    'split': split,
    'tokenizer': tokenizer.name,
    'vocabulary_size': tokenizer.vocabulary_size,
    **{f'{name}_tokens': len(part.tokens) for name, part in splits.items()},
  }


def text_parts(config: dict[str, Any]) -> dict[str, Part]:
  """The text of both splits of a resolved `config.data`, before any tokenizer: {'train': Part, 'validation': Part}."""
  names = {'train': config['source'], 'validation': config['validation_source']}
  sources = {split: open_source(name) for split, name in names.items() if name}
  return _parts(sources, {split: survey(s) for split, s in sources.items()}, config['validation_fraction'])[0]
