"""Pairs made on the fly, whose answer is known: `synthetic:copy`, `synthetic:reverse` and `synthetic:addition`.

Which pairs validate is decided by a hash of the pair, so that none of them is ever trained on.
"""

import dataclasses
import functools
import zlib
from typing import Annotated, Any, NamedTuple

import numpy as np

from aigc_jax.config import Positive
from aigc_jax.data import batches, pairs, sources, tokenizers
from aigc_jax.data.pairs import Bucket, Pair
from aigc_jax.data.pipeline import Dataset
from aigc_jax.errors import UsageError, listed, nearest

LETTERS = 'abcdefghijklmnopqrstuvwxyz'
HELD_OUT = 10  # one in so many pairs validates
VALIDATION_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class SyntheticPairsData:
  source: str = 'synthetic:addition'  # or synthetic:copy, synthetic:reverse
  longest: Annotated[int, Positive] = 3  # digits of a summand, or letters, at most
  validation_pairs: Annotated[int, Positive] = 1000  # held out
  batch_size: Annotated[int, Positive] = 128  # pairs of a step, over all devices and microbatches
  seed: int = 0  # of the order of the data, and of what is drawn with them


class Kind(NamedTuple):
  make: Any  # generator, longest -> (source, target)
  group: Any  # source -> what is held out together
  alphabet: str
  lengths: Any  # longest -> characters of (source, target) at most


def letters(generator, longest):
  """1 to `longest` letters, each length as often."""
  return ''.join(LETTERS[i] for i in generator.integers(26, size=generator.integers(1, longest + 1)))


def copy(generator, longest):
  text = letters(generator, longest)
  return text, text


def reverse(generator, longest):
  text = letters(generator, longest)
  return text, text[::-1]


def addition(generator, longest):
  """Two numbers of 1 to `longest` digits, each length as often, and their sum."""
  a, b = (int(generator.integers(10 ** int(digits))) for digits in generator.integers(1, longest + 1, 2))
  return f'{a}+{b}', f'{a + b}'


def summands(source):
  """a+b and b+a are one pair."""
  return '+'.join(sorted(source.split('+')))


KINDS = {
  'copy': Kind(copy, str, LETTERS, lambda longest: (longest, longest)),
  'reverse': Kind(reverse, str, LETTERS, lambda longest: (longest, longest)),
  'addition': Kind(addition, summands, '0123456789+', lambda longest: (2 * longest + 1, longest + 1)),
}


def held_out(kind, source):
  return zlib.crc32(kind.group(source).encode()) % HELD_OUT == 0


def load(data_config: dict[str, Any], tokenizer=None) -> Dataset:
  """Batches as `pairs.load` has them, all of one shape; a batch is a function of the seed and the step alone.

  Raises UsageError for a kind that is not known, or has too few pairs to validate.
  """
  config = batches.checked(SyntheticPairsData, data_config)
  kind = find(config['source'])
  if tokenizer is None:
    tokenizer = tokenizers.build('characters', kind.alphabet, lambda: (), separated=True)
  limits = dict(zip(pairs.SIDES, (n + 1 for n in kind.lengths(config['longest'])), strict=True))
  limits = {f'{side}_length': n for side, n in limits.items()} | {'too_long': 'refuse'}
  shape = tuple(limits[f'{side}_length'] for side in pairs.SIDES)
  size, end = config['batch_size'], tokenizer.target.end_of_text

  def arrays_of(found):
    encoded = pairs.encode(limits, tokenizer, [Pair(*pair, 'a synthetic pair') for pair in found])
    return pairs.arrays_of(encoded, Bucket(np.arange(len(found)), shape), end)

  def train_batch(step, part=batches.WHOLE):
    generator = np.random.default_rng([config['seed'] % 2**64, int(step)])
    found = []
    while len(found) < size:
      pair = kind.make(generator, config['longest'])
      if not held_out(kind, pair[0]):
        found.append(pair)
    return arrays_of([found[i] for i in np.arange(size)[part]])

  validation = validation_pairs(config, kind)
  arrays = arrays_of(validation)
  facts = {
    'source': config['source'],
    'size': f'pairs made on the fly, {len(validation):,} that validate',
    'split': f'one in {HELD_OUT} pairs, by its hash, is never trained on',
    **pairs.tokenizer_facts(tokenizer),
    'validation_pairs': len(validation),
    'steps_per_epoch': None,
    **{name: limit for name, limit in limits.items() if name != 'too_long'},
  }
  validation_batches = functools.partial(pairs.in_order, [arrays], size)
  return Dataset(
    tokenizer, train_batch, validation_batches, -(-len(validation) // size), facts, pairs=tuple(validation)
  )


def load_validation(data_config: dict[str, Any], tokenizer) -> Dataset:
  """As `load`: what validates is never trained on."""
  return load(data_config, tokenizer)


def find(name: str) -> Kind:
  _, place = sources.parted(name, {'synthetic': 'synthetic:addition'})
  if place not in KINDS:
    raise UsageError(f'data.source {name!r}: {nearest(place, KINDS)}there are {listed(KINDS)}')
  return KINDS[place]


def validation_pairs(config, kind) -> list:
  """Different pairs that are held out, the same for every seed."""
  generator, found = np.random.default_rng(VALIDATION_SEED), {}
  for _ in range(100 * HELD_OUT * config['validation_pairs']):
    source, target = kind.make(generator, config['longest'])
    if held_out(kind, source):
      found[source] = target
    if len(found) == config['validation_pairs']:
      return list(found.items())
  if not found:
    raise UsageError(f'data.longest: {config["longest"]} leaves no pair to validate; raise it')
  return list(found.items())
