"""A sweep is data: a list of override dicts, [{dotted key: value}, ...], one a trial, made of these functions.

  def sweep_learning_rate():  # in a config file, beside get_config
    return product(sweep('optimizer.learning_rate', logarithmic(1e-4, 1e-2, 5)), sweep('seed', range(3)))

or typed: --sweep="optimizer.learning_rate=1e-4,3e-4,1e-3;seed=0..2".
"""

import itertools
import re
from typing import NamedTuple

import numpy as np

from aigc_jax.errors import UsageError

RANGE = re.compile(r'(-?\d+)\.\.(-?\d+)')  # both ends count
CALL = re.compile(r'(\w+)\((.*)\)')


def sweep(key, values):
  """A trial for each value of one field."""
  return [{key: value} for value in values]


def fixed(key, value):
  """One trial, in which the field has this value: for `product`, to set it in all of them."""
  return [{key: value}]


def product(*spaces):
  """Every combination of a trial of each space; those of the last one change fastest."""
  return [join(trials) for trials in itertools.product(*spaces)]


def zipit(*spaces):
  """The first trials of all spaces together, the second ones together, and so on; all are equally long."""
  lengths = [len(space) for space in spaces]
  if len(set(lengths)) > 1:
    raise UsageError(
      f'zipit: spaces of {", ".join(map(str, lengths))} trials; it takes those of equal length'
    )
  return [join(trials) for trials in zip(*spaces, strict=True)]


def chainit(*spaces):
  """The trials of one space after those of another."""
  return list(itertools.chain(*spaces))


def join(trials):
  """One override dict of several. Raises UsageError where two set the same field."""
  joined = {}
  for trial in trials:
    if twice := joined.keys() & trial.keys():
      raise UsageError(f'{min(twice)}: is swept twice in one trial; give it once')
    joined |= trial
  return joined


def linear(low, high, count):
  """`count` numbers from `low` to `high`, both among them, equally far apart."""
  return np.linspace(low, high, count).tolist()


def logarithmic(low, high, count):
  """`count` numbers from `low` to `high`, both among them, each the same multiple of the one before; above 0."""
  if low <= 0 or high <= 0:
    raise UsageError(f'logarithmic({low}, {high}, {count}): takes bounds above 0')
  # so that 0.001 is 0.001
  return [float(f'{value:.12g}') for value in np.geomspace(low, high, count)]


def uniform(low, high, count, seed=0):
  """`count` numbers drawn evenly between `low` and `high`, the same for the same seed."""
  return np.random.default_rng(seed).uniform(low, high, count).tolist()


def log_uniform(low, high, count, seed=0):
  """`count` numbers whose logarithms are drawn evenly, the same for the same seed; above 0."""
  if low <= 0 or high <= 0:
    raise UsageError(f'log_uniform({low}, {high}, {count}): takes bounds above 0')
  return np.exp(np.random.default_rng(seed).uniform(np.log(low), np.log(high), count)).tolist()


def choices(options, count, seed=0):
  """`count` of the options, drawn with replacement, the same for the same seed."""
  options = list(options)
  return [options[i] for i in np.random.default_rng(seed).integers(len(options), size=count)]


class Between(NamedTuple):
  """The numbers that a search draws from: between `low` and `high`, both included."""

  low: float
  high: float
  logarithmic: bool = False
  whole: bool = False  # integers alone


SPREADS = {
  'linear': linear,
  'logarithmic': logarithmic,
  'uniform': uniform,
  'log_uniform': log_uniform,
}


def parse(text):
  """'KEY=VALUE,VALUE;KEY=A..B;KEY=logarithmic(LOW,HIGH,COUNT)' -> every combination. Raises UsageError.

  Values are texts, which become those of the field's type; lists are written in brackets: [8,16],[16,32].
  """
  parts = [part.strip() for part in split(text, ';') if part.strip()]
  if not parts:
    raise UsageError(f'--sweep={text}: is empty; it takes KEY=VALUE,VALUE and more after a semicolon')
  spaces = []
  for part in parts:
    key, equals, values = part.partition('=')
    found = [value for written in split(values, ',') for value in values_of(text, written.strip())]
    if not equals or not key.strip() or not found:
      raise UsageError(f'--sweep={text}: {part!r} has no values; it takes KEY=VALUE,VALUE')
    spaces.append(sweep(key.strip().removeprefix('config.'), found))
  return product(*spaces)


def parse_search(text):
  """'KEY=VALUE,VALUE;KEY=A..B;KEY=uniform(LOW,HIGH);KEY=log_uniform(LOW,HIGH)' -> {key: Between or [value]}."""
  found = {}
  for part in filter(None, (part.strip() for part in split(text, ';'))):
    key, equals, values = (piece.strip() for piece in part.partition('='))
    key = key.removeprefix('config.')
    if not equals or not key or not values:
      raise UsageError(
        f'--sweep={text}: {part!r} has no values; it takes KEY=VALUE,VALUE or KEY=uniform(LOW,HIGH)'
      )
    if key in found:
      raise UsageError(f'--sweep={text}: {key} is there twice; give it once')
    found[key] = between(text, values) or [
      v for each in split(values, ',') for v in values_of(text, each.strip())
    ]
  if not found:
    raise UsageError(f'--sweep={text}: is empty; it takes KEY=uniform(LOW,HIGH) and more after a semicolon')
  return found


def between(text, written):
  """The Between of 'A..B', 'uniform(LOW,HIGH)' or 'log_uniform(LOW,HIGH)', None for other values."""
  if ends := RANGE.fullmatch(written):
    low, high, logarithmic, whole = int(ends[1]), int(ends[2]), False, True
  elif (
    (call := CALL.fullmatch(written)) and call[1] in ('uniform', 'log_uniform') and call[2].count(',') == 1
  ):
    logarithmic, whole = call[1] == 'log_uniform', False
    try:
      low, high = map(float, call[2].split(','))
    except ValueError:
      raise UsageError(f'--sweep={text}: {written}: it takes {call[1]}(LOW,HIGH)') from None
  else:
    return None
  if not low < high or (logarithmic and low <= 0):
    raise UsageError(
      f'--sweep={text}: {written}: it takes LOW below HIGH' + (', above 0' if logarithmic else '')
    )
  return Between(low, high, logarithmic, whole)


def values_of(text, written):
  """[value] of what is written between two commas."""
  if ends := RANGE.fullmatch(written):
    first, last = map(int, ends.groups())
    if last < first:
      raise UsageError(f'--sweep={text}: {written} is empty; it takes A..B with A at most B')
    return [str(number) for number in range(first, last + 1)]
  if (call := CALL.fullmatch(written)) and call[1] in SPREADS:
    try:
      low, high, count, *seed = call[2].split(',')
      values = SPREADS[call[1]](float(low), float(high), int(count), *map(int, seed))
    except (TypeError, ValueError):
      seed = ',SEED' if call[1] in ('uniform', 'log_uniform') else ''
      raise UsageError(f'--sweep={text}: {written}: it takes {call[1]}(LOW,HIGH,COUNT{seed})') from None
    return values
  return [written] if written else []


def split(text, separator):
  """The parts of a text between separators that stand outside brackets."""
  parts, depth = [''], 0
  for character in text:
    depth += (character in '[(') - (character in '])')
    if character == separator and depth == 0:
      parts.append('')
    else:
      parts[-1] += character
  return parts
