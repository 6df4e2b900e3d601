"""Pairs of texts as batches: `tsv:PATH` and `jsonl:PATH`, a source and its target on each line, as `records` has them.

`bundled:en_zh` is English and Chinese; `bundled:song_ci` is a poem's tune with the first half of its lines, and the
second half, or the fields that are named. A source ends in the tokenizer's end-of-text token, or stands within a
template, as instructions do, and the target follows at once; a target ends in that token.
"""

import bisect
import dataclasses
import functools
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from aigc_jax.config import Positive, Range
from aigc_jax.data import batches, records, sources, tokenizers
from aigc_jax.data.pipeline import Batch, Dataset
from aigc_jax.data.tokenizers import PairTokenizer
from aigc_jax.errors import DataError, UsageError

BUNDLED = {
  'en_zh': ('en_zh.tsv.gz', '1faa2a1d28c8c21108a43a1a3a18ab298ab922612cbd3f00cde5bcfa8c5de1e1'),
  'song_ci': sources.BUNDLED['song_ci'],
}
KINDS = records.KINDS | {'bundled': 'bundled:en_zh'}
FIELDS = {'tsv': ('1', '2'), 'jsonl': ('source', 'target')}  # where the config names none
SOURCE = '{source}'  # in templates
SHAPE_STEP = 8  # tokens that the lengths of a bucket are rounded up to


@dataclasses.dataclass(frozen=True)
class PairData:
  source: str = 'bundled:en_zh'  # tsv:PATH, jsonl:PATH, bundled:en_zh or bundled:song_ci
  validation_source: str | None = None  # None: a part of `source`
  # the part that validates, where no validation_source is given
  validation_fraction: Annotated[float, Range('in (0, 1)', above=0, below=1)] = 0.1
  source_field: str | None = None  # a column or JSON field; None: column 1, field 'source'
  target_field: str | None = None  # None: column 2, field 'target'
  # what stands around each source, '{source}' in it, such as 'Question: {source}\nAnswer:'; None: nothing but its end
  source_template: str | None = None
  tokenizer: str = 'characters'  # characters, bytes, bpe:SIZE, gpt2
  source_tokenizer: str | None = None  # of sources alone; None: one vocabulary for both
  source_length: Annotated[int, Positive] = 128  # tokens, the end or the template included
  target_length: Annotated[int, Positive] = 128  # tokens, the end included
  too_long: Literal['cut', 'refuse'] = 'cut'  # what is done with a longer text
  buckets: Annotated[int, Positive] = 1  # groups of like lengths; each is a shape, and compiled once
  batch_size: Annotated[int, Positive] = 32  # pairs of a step, over all devices and microbatches
  seed: int = 0  # of the order of the data, and of what is drawn with them


class Pair(NamedTuple):
  source: str
  target: str
  where: str  # file and line, for errors


class Bucket(NamedTuple):
  """Pairs of one shape, `rows` [n] of their split."""

  rows: np.ndarray
  shape: tuple[int, int]  # tokens of the sources and of the targets


class Encoded(NamedTuple):
  """The tokens of a split: lists of int32 arrays, and how many texts were cut."""

  sources: list
  targets: list
  cut: tuple[int, int]

  @property
  def lengths(self):
    """[pairs, 2] int: tokens of each source and target."""
    return np.array([list(map(len, self.sources)), list(map(len, self.targets))]).T


def load(data_config: dict[str, Any], tokenizer=None) -> Dataset:
  """The pairs that `config.data` describes; `tokenizer`, where given, is used instead of making one.

  A batch holds 'sources' (int32 [batch, source], 0 behind a text) and their 'lengths' (int32 [batch]), 'inputs' and
  'targets' (int32 [batch, time]: each target is the token after its input) and 'mask' (float32 [batch, time], 0 behind
  a target, and in rows that fill up a bucket's last batch). Its shape is that of one bucket.
  Raises UsageError (config) and DataError (files, an empty side, characters outside the vocabulary).
  """
  config = batches.checked(PairData, data_config)
  check_template(config['source_template'])
  if tokenizer is None:
    tokenizers.check(config['tokenizer'])
    tokenizers.check(config['source_tokenizer'] or config['tokenizer'])
  sha256, train = read(config, config['source'])
  facts = {'source': config['source'], 'sha256': sha256}
  if config['validation_source']:
    facts['validation_source'] = config['validation_source']
    facts['validation_sha256'], validation = read(config, config['validation_source'])
    split = 'validation has a source of its own'
  else:
    *rows, split = batches.split_rows(config['source'], len(train), config['validation_fraction'], 'pairs')
    train, validation = ([train[row] for row in chosen.tolist()] for chosen in rows)
  tokenizer = make_tokenizer(config, train, validation) if tokenizer is None else with_end(tokenizer)
  return make_dataset(config, tokenizer, train, validation, facts | {'split': split})


def load_validation(data_config: dict[str, Any], tokenizer) -> Dataset:
  """As `load`, with all of `source` for validation and no training batches: for a trained model."""
  config = batches.checked(PairData, data_config)
  sha256, pairs = read(config, config['source'])
  facts = {'source': config['source'], 'sha256': sha256, 'split': 'all of it validates'}
  return make_dataset(config, tokenizer, None, pairs, facts)


def read(config: dict[str, Any], name: str) -> tuple[str, list[Pair]]:
  """The sha256 of the file of `name` and its pairs in order. Raises UsageError and DataError."""
  kind, place = sources.parted(name, KINDS)
  if kind == 'bundled':
    path, sha256 = sources.find_bundled(name, place, BUNDLED)
    kind = 'jsonl' if path.name.endswith('.jsonl.gz') else 'tsv'
  else:
    path, sha256 = records.open_lines(name, kind, place)
  options = dict(zip(('source_field', 'target_field'), FIELDS[kind], strict=True))
  fields = {option: config[option] or usual for option, usual in options.items()}
  if name == 'bundled:song_ci' and not any(config[option] for option in options):
    pairs = [halves(*found) for found in sources.reading(path, sources.json_records(path))]
    pairs = [pair for pair in pairs if pair is not None]
  else:
    pairs = [Pair(*record.values, record.where) for record in records.read(kind, path, fields)]
  if not pairs:
    raise DataError(f'{name}: {path} holds no pair')
  return sha256, pairs


def halves(poem, where):
  """A poem as a pair: its tune and the first half of its lines, and the others; None where it has one line."""
  lines = poem['lines']
  half = -(-len(lines) // 2)
  if len(lines) < 2:
    return None
  return Pair('\n'.join([poem['title'], *lines[:half]]), '\n'.join(lines[half:]), where)


def check_template(template: str | None):
  """Raises UsageError where it has no one place for the source."""
  if template is not None and template.count(SOURCE) != 1:
    raise UsageError(
      f'config.data.source_template: {template!r} must hold {SOURCE} once, such as "Question: {SOURCE} Answer:"'
    )


def with_end(tokenizer):
  """A tokenizer from elsewhere with the token that a target ends in. Raises UsageError where it cannot have one."""
  if isinstance(tokenizer, PairTokenizer):
    return tokenizer
  found = tokenizers.with_end(tokenizer)
  if found.end_of_text is None:
    raise UsageError(
      f'config.init_from: its tokenizer, {tokenizer.name!r}, has no end-of-text token, and a target ends in one'
    )
  return found


def make_tokenizer(config: dict[str, Any], train: list[Pair], validation: list[Pair]):
  """Of all characters; BPE of the training part. One for both sides, or a PairTokenizer where they are separate."""

  def build(specification, sides):
    texts = lambda pairs: (pair[side] for pair in pairs for side in sides)
    alphabet = ''.join({character for text in texts(train + validation) for character in text})
    alphabet += (config['source_template'] or '').replace(SOURCE, '') if 0 in sides else ''
    return tokenizers.build(specification, alphabet, lambda: texts(train), separated=True)

  if config['source_tokenizer'] is None:
    return build(config['tokenizer'], (0, 1))
  return PairTokenizer(build(config['source_tokenizer'], (0,)), build(config['tokenizer'], (1,)))


def make_dataset(config, tokenizer, train, validation, facts) -> Dataset:
  parts = {name: part for name, part in (('train', train), ('validation', validation)) if part is not None}
  encoded = {name: encode(config, tokenizer, part) for name, part in parts.items()}
  lengths = np.concatenate([part.lengths for part in encoded.values()])
  shapes = bucket_shapes(lengths, config['buckets'])
  groups = {name: assign(part.lengths, shapes) for name, part in encoded.items()}
  facts = facts | {
    'size': f'{" and ".join(f"{len(part):,}" for part in parts.values())} pairs',
    **tokenizer_facts(tokenizer),
    **{f'{name}_pairs': len(part) for name, part in parts.items()},
    **{f'cut_{side}s': sum(part.cut[i] for part in encoded.values()) for i, side in enumerate(SIDES)},
    'buckets': ', '.join(
      f'{b.shape[0]} and {b.shape[1]}: {len(b.rows):,}' for b in next(iter(groups.values()))
    ),
    **{f'{side}_length': config[f'{side}_length'] for side in SIDES},
  }
  size = config['batch_size']
  pieces = {
    name: [arrays_of(encoded[name], bucket, tokenizer.target.end_of_text) for bucket in found]
    for name, found in groups.items()
  }
  texts = tuple((pair.source, pair.target) for pair in validation)
  validation_batches = functools.partial(in_order, pieces['validation'], size)
  count = sum(-(-len(bucket.rows) // size) for bucket in groups['validation'])
  if train is None:
    return Dataset(tokenizer, batches.no_training, validation_batches, count, facts, pairs=texts)
  train_batch, starts = shuffled(pieces['train'], size, config['seed'])
  facts['steps_per_epoch'] = len(starts)
  return Dataset(
    tokenizer,
    train_batch,
    validation_batches,
    count,
    facts,
    shapes=lambda: [batches.padded(batch_of(arrays, np.arange(0)), size) for arrays in pieces['train']],
    pairs=texts,
  )


SIDES = ('source', 'target')


def tokenizer_facts(tokenizer):
  facts = {'tokenizer': tokenizer.name, 'vocabulary_size': tokenizer.vocabulary_size}
  if tokenizer.source is not tokenizer.target:
    facts |= {'source_tokenizer': tokenizer.source.name}
    facts |= {'source_vocabulary_size': tokenizer.source.vocabulary_size}
  return facts


def encode(config, tokenizer, pairs: list[Pair]) -> Encoded:
  """The tokens of pairs; a target that is too long is cut, and then has no end.

  Raises DataError for characters outside the vocabulary, UsageError for a text too long where that is refused.
  """
  limit, end = config['target_length'], np.array([tokenizer.target.end_of_text], np.int32)
  for i, known in enumerate((tokenizer.source, tokenizer.target)):
    records.check_alphabet(known, ((pair[i], pair.where) for pair in pairs))
  sources, over = read_sources(tokenizer.source, [pair.source for pair in pairs], config)
  targets = [np.concatenate([ids, end]) for ids in tokenizer.target.encode_all([p.target for p in pairs])]
  beyond = [max(len(ids) - limit, 0) for ids in targets]
  for side, tokens, more in (('source', sources, over), ('target', [t[:limit] for t in targets], beyond)):
    if config['too_long'] == 'refuse' and any(more):
      long = next(i for i, count in enumerate(more) if count)
      raise UsageError(
        f'{pairs[long].where}: the {side} has {len(tokens[long]) + more[long]} tokens, all in all, and '
        f'config.data.{side}_length is {config[f"{side}_length"]}; raise it, or cut the '
        f'{sum(map(bool, more)):,} that are longer by --config.data.too_long=cut'
      )
  cut = tuple(sum(map(bool, more)) for more in (over, beyond))
  return Encoded(sources, [ids[:limit] for ids in targets], cut)


def read_sources(tokenizer, texts: list[str], config) -> tuple[list, list]:
  """(what a model reads of each text, int32 arrays; how many tokens of each there was no room for).

  config: of it `source_template` and `source_length` count, None or missing: none. Of a text that is too long the end
  is left out, never what the template has behind it. Raises UsageError for characters that the tokenizer lacks, and
  where the template leaves no room.
  """
  template, length = config.get('source_template'), config.get('source_length')
  if template is None:
    end = [tokenizer.end_of_text]
    whole = [np.array([*tokenizer.prefix, *ids], np.int32) for ids in tokenizer.encode_all(texts)]
    kept = [ids if length is None else ids[: length - 1] for ids in whole]
    dropped = [len(ids) - len(part) for ids, part in zip(whole, kept, strict=True)]
    return [np.concatenate([part, end]).astype(np.int32) for part in kept], dropped
  # what stands before a text is a part of it here, as where a chat template is rendered and then tokenized
  wrap = lambda text: tokenizer.decode(tokenizer.prefix) + template.replace(SOURCE, text)
  try:
    least = len(tokenizer.encode(wrap(''))) + 1
  except UsageError as error:
    raise UsageError(f'config.data.source_template: {error}') from None
  if length is not None and length < least:
    raise UsageError(f'config.data.source_length: {length} leaves no room for a source; use {least} or more')
  try:
    found, dropped = tokenizer.encode_all([wrap(text) for text in texts]), [0] * len(texts)
  except UsageError:
    tokenizer.encode_all(
      texts
    )  # says what the vocabulary lacks by its place in the text, and not in the template
    raise
  for i, ids in enumerate(found):
    if length is not None and len(ids) > length:
      size = lambda count, text=texts[i]: len(tokenizer.encode(wrap(text[:count])))
      most = bisect.bisect_right(range(len(texts[i])), length, key=size) - 1  # characters
      found[i] = tokenizer.encode(wrap(texts[i][: max(most, 0)]))
      dropped[i] = len(ids) - len(found[i])
  return found, dropped


def bucket_shapes(lengths: np.ndarray, buckets: int) -> list[tuple[int, int]]:
  """Shapes (source, target), at most `buckets`, that hold groups of about as many pairs each; the last holds all."""
  order = np.argsort(lengths.sum(1), kind='stable')
  groups = [lengths[rows] for rows in np.array_split(order, buckets) if len(rows)]
  most = [np.maximum.reduce(group) for group in [*groups[:-1], lengths]]
  rounded = [tuple((-(-shape // SHAPE_STEP) * SHAPE_STEP).tolist()) for shape in most]
  return list(dict.fromkeys(rounded))


def assign(lengths: np.ndarray, shapes: list[tuple[int, int]]) -> list[Bucket]:
  """Each pair to the first of the shapes that holds it; shapes without pairs are left out."""
  fits = np.array([(lengths <= shape).all(1) for shape in shapes])  # [shapes, pairs]
  first = fits.argmax(0)
  found = [Bucket(np.flatnonzero(first == i), shape) for i, shape in enumerate(shapes)]
  return [bucket for bucket in found if len(bucket.rows)]


def arrays_of(encoded: Encoded, bucket: Bucket, begin: int) -> Batch:
  """The arrays of a bucket's pairs, as a batch has them."""
  count, (source, target) = len(bucket.rows), bucket.shape
  arrays = {
    name: np.zeros((count, width), np.int32)
    for name, width in zip(('sources', 'inputs', 'targets'), (source, target, target), strict=True)
  }
  arrays |= {'lengths': np.zeros(count, np.int32), 'mask': np.zeros((count, target), np.float32)}
  for i, row in enumerate(bucket.rows):
    tokens, targets = encoded.sources[row], encoded.targets[row]
    arrays['sources'][i, : len(tokens)] = tokens
    arrays['lengths'][i] = len(tokens)
    arrays['inputs'][i, : len(targets)] = [begin, *targets[:-1]]
    arrays['targets'][i, : len(targets)] = targets
    arrays['mask'][i, : len(targets)] = 1
  return arrays


def batch_of(arrays: Batch, rows: np.ndarray) -> Batch:
  """The rows [n] of a bucket."""
  return {name: array[rows] for name, array in arrays.items()}


def in_order(pieces: list[Batch], size: int, part=batches.WHOLE) -> Iterator[Batch]:
  """All pairs once, bucket by bucket; the last batch of each ends in zeros."""
  for arrays in pieces:
    for rows, asked in batches.rows_in_order(len(arrays['lengths']), size, part):
      yield batches.padded(batch_of(arrays, rows), asked)


def shuffled(pieces: list[Batch], size: int, seed: int):
  """((step, part=WHOLE) -> batch, where the batches of an epoch begin). An epoch has each pair once, buckets mixed.

  Which pairs are together, and when, is a function of `seed` and the epoch alone.
  """
  starts = [(n, first) for n, arrays in enumerate(pieces) for first in range(0, len(arrays['lengths']), size)]

  @functools.lru_cache(maxsize=2)
  def order(epoch):
    generator = np.random.default_rng([seed % 2**64, epoch])
    return generator.permutation(len(starts)), [generator.permutation(len(a['lengths'])) for a in pieces]

  def train_batch(step, part=batches.WHOLE):
    epoch, place = divmod(int(step), len(starts))
    batch_order, row_orders = order(epoch)
    n, first = starts[batch_order[place]]
    places = first + np.arange(size)[part]
    rows = row_orders[n][places[places < len(row_orders[n])]]
    return batches.padded(batch_of(pieces[n], rows), len(places))

  return train_batch, starts
