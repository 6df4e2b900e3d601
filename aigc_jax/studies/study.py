"""A study as data: what is trained, what is measured of it, and the numbers that it is held against.

A study file, which the user names on the command line, defines get_study():

  def get_study():
    loss = Measure('validation loss, nats', 'validation/loss', references=(Reference(1.849, 'nanoGPT', 0.02),))
    return Study('A recipe again', (Arm('nanoGPT', 'configs/transformer_lm.py:nanogpt', (loss,)),))
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from aigc_jax import config_files
from aigc_jax.errors import UsageError, listed, nearest

SIDES = ('within', 'at least', 'at most')
CHECKPOINTS = {
  'last': 'latest',
  'best': 'best',
}  # when something is measured: the checkpoint, as `load_run` has it


class Mean(NamedTuple):
  """What another line of the study comes to: its mean over seeds."""

  arm: str
  measure: str


class Reference(NamedTuple):
  """What the mean of a measure is held against."""

  value: float | Mean
  source: str  # where it was published, or the command that made it
  tolerance: float = 0.0  # in the unit of the measure, 0 or more
  side: str = (
    'within'  # 'within' the tolerance; 'at least' the value less the tolerance; 'at most' it plus that
  )


class Measure(NamedTuple):
  """A number of each run of an arm."""

  name: str  # for people, with its unit: 'validation loss, nats'
  of: str | Callable  # a metric of metrics.jsonl, 'validation/loss', or TrainedRun -> float
  when: str = 'last'  # the 'last' evaluation or checkpoint, or the 'best' (by config.training.best_metric)
  references: tuple = ()  # of Reference
  digits: int = 3  # after the point, as shown


class Arm(NamedTuple):
  """One config, trained from several seeds."""

  name: str
  config: str  # 'FILE.py:VARIANT', from the current directory
  measures: tuple  # of Measure
  overrides: tuple = ()  # of (dotted key, text or value)
  seeds: tuple = (0, 1, 2)
  seeded: tuple = (
    'seed',
  )  # the fields that take the seed; with 'data.seed' the order of the data differs, too
  quick: tuple = ()  # further overrides with --quick
  needs: str = ''  # a file or folder without which the arm is passed over, and why: 'PATH: what has it'


class Study(NamedTuple):
  """Arms whose measures make one table."""

  title: str
  arms: tuple  # of Arm
  about: str = ''  # Markdown below the title: what is alike in all arms, why these tolerances
  quick: tuple = ()  # overrides of every arm with --quick, which takes the first seed alone
  minutes: float | None = None  # that it takes, about, on two CPU cores


def load(path):
  """The Study of a file, which is run and never imported. Raises UsageError."""
  path = str(path)
  if not os.path.isfile(path):
    folder = os.path.dirname(path) or '.'
    there = (
      sorted(name for name in os.listdir(folder) if name.endswith('.py')) if os.path.isdir(folder) else []
    )
    close = nearest(os.path.basename(path), there)
    raise UsageError(f'{path}: no such file; {close}studies in {folder}: {listed(there) or "none"}')
  study = config_files.call(path, 'get_study')
  if not isinstance(study, Study):
    raise UsageError(f'{path}: get_study() returns {study!r}; it takes an aigc_jax.studies.study.Study')
  try:
    check(study)
  except UsageError as error:
    raise UsageError(f'{path}: {error}') from None
  return study


def shortened(study):
  """The study with --quick: few steps of the first seed of each arm, for a look at whether it runs."""
  short = lambda arm: arm._replace(overrides=(*arm.overrides, *study.quick, *arm.quick), seeds=arm.seeds[:1])
  return study._replace(arms=tuple(map(short, study.arms)))


def check(study):
  """Raises UsageError where a part is of the wrong kind, a name is there twice or a Mean is of no line."""
  every(study.arms, Arm, 'the arms of the study')
  pairs(study.quick, 'the quick overrides of the study')
  once([arm.name for arm in study.arms], 'arms')
  once([folder_of(arm) for arm in study.arms], 'folders of arms')
  for arm in study.arms:
    every(arm.measures, Measure, f'the measures of arm {arm.name!r}')
    once([measure.name for measure in arm.measures], f'measures of arm {arm.name!r}')
    once(arm.seeds, f'seeds of arm {arm.name!r}')
    pairs((*arm.overrides, *arm.quick), f'the overrides of arm {arm.name!r}')
    for measure in arm.measures:
      check_measure(study, measure, f'measure {measure.name!r} of arm {arm.name!r}')


def check_measure(study, measure, where):
  if not callable(measure.of) and not str(measure.of).startswith('validation/'):
    raise UsageError(f"{where}: {measure.of!r} is neither a metric 'validation/NAME' nor a function of a run")
  one_of(measure.when, CHECKPOINTS, where)
  for reference in every(measure.references, Reference, f'the references of {where}', fewest=0):
    one_of(reference.side, SIDES, where)
    if not reference.tolerance >= 0:
      raise UsageError(f'{where}: a tolerance of {reference.tolerance!r}; it takes 0 or more')
    lines = [Mean(arm.name, each.name) for arm in study.arms for each in arm.measures]
    if isinstance(reference.value, Mean) and reference.value not in lines:
      raise UsageError(f'{where}: is held against {tuple(reference.value)}, which is no line; {shown(lines)}')
    if not isinstance(reference.value, Mean | float | int):
      raise UsageError(f'{where}: is held against {reference.value!r}; it takes a number or a Mean')


def shown(lines):
  return f'there are {listed(map(tuple, lines))}'


def every(parts, kind, what, fewest=1):
  """The parts. Raises UsageError unless they are a tuple or list of `kind`."""
  if not isinstance(parts, tuple | list) or len(parts) < fewest or isinstance(parts, kind):
    raise UsageError(f'{what}: {parts!r}; it takes a tuple of {kind.__name__}')
  for part in parts:
    if not isinstance(part, kind):
      raise UsageError(f'{what}: {part!r} is no {kind.__name__}')
  return parts


def pairs(overrides, what):
  """Raises UsageError unless overrides are pairs of a dotted key and a value."""
  for pair in overrides:
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[0], str):
      raise UsageError(f"{what}: {pair!r} is no pair; such as ('training.steps', 100)")


def once(names: Any, what):
  for name in names:
    if list(names).count(name) > 1:
      raise UsageError(f'{what}: {name!r} is there twice; give it once')
  if not names:
    raise UsageError(f'{what}: there is none')


def one_of(value, known, where):
  if value not in known:
    raise UsageError(f'{where}: {value!r} is not known; {nearest(value, known)}it takes {listed(known)}')


def folder_of(arm):
  """The name of an arm's folder: 'GRU, state carried' -> 'gru-state-carried'."""
  kept = ''.join(letter if letter.isalnum() else ' ' for letter in arm.name.lower())
  return '-'.join(kept.split())
