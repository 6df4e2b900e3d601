"""What is copied: the longest runs of symbols that samples share with a text, and the nearest images. Exact.

Symbols are whole numbers: code points of characters, or tokens. Windows of the samples get names by doubling (Karp,
Miller and Rosenberg 1972): two windows of length 2^k have one name exactly where they are equal, and a window of any
length between 2^k and 2^(k+1) is known by the names of the two windows of 2^k that cover it. The text's windows are
looked up among those of the samples, and what is not there has no name. With m symbols of samples, n of text and a
longest common run of r, that is O((n + m) log m) for each length that is tried, at most 2 + log2(r) lengths for the
doubling and log2(r) more for each sample; but few places of a text have a name after the first lengths, and the others
cost a look at each. The memory is two int32 for each symbol of the text, besides the text.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import distance

SEPARATOR = -1  # no symbol: no run goes over it
AT_ONCE = 1 << 22  # places of the text
TABLE = 1 << 24  # names of pairs up to here are looked up in a table
ROWS = 2048  # images compared at once


class Overlap(NamedTuple):
  """The longest run of symbols that a sample shares with the text; of several, the first in the sample."""

  length: int
  start: int  # where it begins in the sample
  place: int  # where it first occurs in the text; -1: the run is empty


class Comparison(NamedTuple):
  overlaps: list  # an Overlap for each sample
  found: int  # n-grams of the samples that the text has
  grams: int  # n-grams of the samples

  @property
  def lengths(self):
    return np.array([overlap.length for overlap in self.overlaps])


class Level(NamedTuple):
  """Names of all windows of a width: 1, 2, ... in the samples, and the same in the text; 0: none."""

  width: int
  samples: np.ndarray  # [m] int32
  text: np.ndarray  # [n] int32


def symbols(text: str) -> np.ndarray:
  """The code points of a text, int32 [characters]; halves of characters become U+FFFD."""
  return np.frombuffer(text.encode('utf-32-le', 'replace'), '<i4')


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Arrays of symbols one after another, each followed by SEPARATOR: int32."""
  end = np.array([SEPARATOR], np.int32)
  return np.concatenate([end[:0], *(piece for part in parts for piece in (part, end))], dtype=np.int32)


def compare(samples: Sequence[np.ndarray], text: np.ndarray, size: int) -> Comparison:
  """The longest run of each of `samples` that `text` has, and how many of their n-grams of `size` symbols it has.

  Symbols are 0 or more; what is less in `text` parts its documents, and no run goes over it.
  """
  lengths = [len(sample) for sample in samples]
  owner = np.repeat(np.arange(len(lengths)), np.array(lengths, int) + 1)  # [m]: the sample of each symbol
  starts = np.cumsum([0, *(length + 1 for length in lengths)])[:-1]
  every = joined(samples)
  grams, found = sum(max(length - size + 1, 0) for length in lengths), 0
  best = [Overlap(0, 0, -1)] * len(lengths)
  level, places = first_level(every, text)
  while (places >= 0).any():
    wider, wider_places = windows(level, 2 * level.width, keep=True)
    if level.width <= size < 2 * level.width:
      found = int((windows(level, size)[1] >= 0).sum())
    ends_here = sorted({*owner[places >= 0].tolist()} - {*owner[wider_places >= 0].tolist()})
    for sample, (length, where) in longest(level, places, owner, ends_here).items():
      first = int(np.flatnonzero((where >= 0) & (owner == sample))[0])
      best[sample] = Overlap(length, first - int(starts[sample]), int(where[first]))
    level, places = wider, wider_places
  return Comparison(best, found, grams)


def longest(level, places, owner, samples):
  """{sample: (its longest length, the places of that length)}, of those with a run of level.width, not of twice it."""
  low = dict.fromkeys(samples, (level.width, places))
  high = dict.fromkeys(samples, 2 * level.width)
  while todo := [sample for sample in samples if high[sample] - low[sample][0] > 1]:
    middle = (low[todo[0]][0] + high[todo[0]]) // 2
    where = windows(level, middle)[1]  # says of all samples whether they have a run of that length
    having = {*owner[where >= 0].tolist()}
    for sample in samples:
      if sample in having and low[sample][0] < middle:
        low[sample] = middle, where
      elif sample not in having:
        high[sample] = min(high[sample], middle)
  return low


def first_level(every, text):
  """(the Level of single symbols, the first place in the text of each symbol of the samples [m])."""
  alphabet = np.unique(every[every >= 0])
  table = np.zeros(int(alphabet.max(initial=0)) + 2, np.int32)  # the last: what is larger than all
  table[alphabet] = np.arange(1, len(alphabet) + 1)
  named = lambda values: np.where(values < 0, 0, table[np.clip(values, 0, len(table) - 1)])
  names, found = np.zeros(len(text), np.int32), np.full(len(alphabet) + 1, -1, np.int64)
  for first in range(0, len(text), AT_ONCE):
    part = named(np.asarray(text[first : first + AT_ONCE]).astype(np.int64))
    names[first : first + AT_ONCE] = part
    remember(found, part, first + np.arange(len(part)))
  mine = named(every).astype(np.int32)
  found[0] = -1
  return Level(1, mine, names), found[mine]


def windows(level: Level, length: int, keep: bool = False):
  """Windows of a length from level.width to twice it: (their Level where `keep` asks for it, the first places).

  First places: of each window of the samples [m], where it first occurs in the text, or -1.
  """
  shift = length - level.width
  base = int(level.samples.max()) + 1
  mine, codes = coded(level.samples, shift, base)
  known, inverse = np.unique(codes, return_inverse=True)
  samples = np.zeros(len(level.samples), np.int32)
  samples[mine] = inverse + 1
  look_up = names_of(known, base)
  text, found = np.zeros(len(level.text) if keep else 0, np.int32), np.full(len(known) + 1, -1, np.int64)
  for first in range(0, len(level.text), AT_ONCE):
    at, codes = coded(level.text[first : first + AT_ONCE + shift], shift, base)
    names = look_up(codes)
    at = first + at
    if keep:
      text[at] = names
    remember(found, names, at)
  found[0] = -1
  return Level(length, samples, text) if keep else None, found[samples]


def coded(names, shift, base):
  """(places whose name and the name `shift` further are known, both names as one number)."""
  ahead = names[shift:]
  here = names[: len(ahead)]
  at = np.flatnonzero((here > 0) & (ahead > 0))
  return at, here[at].astype(np.int64) * base + ahead[at]


def names_of(known, base):
  """A function: codes -> their places in the sorted `known`, from 1; 0 for what is not there."""
  if base * base <= TABLE:
    table = np.zeros(base * base, np.int32)
    table[known] = np.arange(1, len(known) + 1)
    return lambda codes: table[codes]

  def search(codes):
    places = np.minimum(np.searchsorted(known, codes), len(known) - 1)
    return np.where(known[places] == codes, places + 1, 0) if len(known) else np.zeros(len(codes), int)

  return search


def remember(found, names, at):
  """Writes into `found`, for each name that it has no place for yet, the first of the ascending places `at`."""
  first = np.full(len(found), -1, np.int64)
  first[names[::-1]] = at[::-1]  # of several, numpy keeps the one written last
  found[:] = np.where(found < 0, first, found)


class Nearest(NamedTuple):
  index: np.ndarray  # [samples]: the nearest image
  distance: np.ndarray  # [samples]: Euclidean
  share: np.ndarray  # [samples]: of the mean distance to the nearest ones; near 0 for a copy


def nearest(samples: np.ndarray, images: np.ndarray, neighbours: int = 50) -> Nearest:
  """The nearest of `images` [n, ...] to each of `samples` [samples, ...], pixels from 0 to 1.

  `share` is the distance by its mean over the `neighbours` nearest images (Carlini et al. 2023, "Extracting Training
  Data from Diffusion Models", section 4.1): what is smooth or dark is near to many images, a copy to one alone.
  O(samples x n x pixels), exact.
  """
  flat = np.asarray(samples, np.float64).reshape(len(samples), -1)
  count = min(neighbours, len(images))
  best = np.full((len(flat), 0), 0.0)
  where = np.zeros((len(flat), 0), np.int64)
  for first in range(0, len(images), ROWS):
    part = unit(images[first : first + ROWS]).reshape(-1, flat.shape[1])
    best = np.concatenate([best, distance.cdist(flat, part)], 1)
    places = np.broadcast_to(first + np.arange(len(part)), (len(flat), len(part)))
    where = np.concatenate([where, places], 1)
    kept = np.argsort(best, axis=1, kind='stable')[:, :count]
    best, where = (np.take_along_axis(array, kept, 1) for array in (best, where))
  mean = np.maximum(best.mean(1), 1e-12)
  return Nearest(where[:, 0], best[:, 0], best[:, 0] / mean)


def unit(images: np.ndarray) -> np.ndarray:
  """Pixels as float64 from 0 to 1: uint8 divided by 255."""
  return images.astype(np.float64) / (255 if images.dtype == np.uint8 else 1)
