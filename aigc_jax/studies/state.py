"""The folder of a study: what was measured and how long it took, so that a study that was killed goes on.

study.json  {'seconds': {arm: of training}, 'made': {arm: when and where, see `page.facts`},
            'measured': {arm: {trial: {measure: {'value', 'seconds'}}}}}
ARM/        the folder of the sweep over its seeds, see `sweeps.folder`
table.md    the page, when all is measured
log.txt
"""

import contextlib
import pathlib
import time

from aigc_jax import files, run
from aigc_jax.errors import UsageError

STATE, PAGE = 'study.json', 'table.md'


class State:
  """study.json, written anew at each change."""

  def __init__(self, path):
    self.file = path / STATE
    found = files.read_json(self.file) if self.file.exists() else {}
    self.seconds, self.made, self.measured = (found.get(name, {}) for name in ('seconds', 'made', 'measured'))
    self.write()

  def write(self):
    files.write_json(self.file, {'seconds': self.seconds, 'made': self.made, 'measured': self.measured})

  @contextlib.contextmanager
  def clock(self, arm):
    """Adds what is done inside to the seconds of an arm, also where it is interrupted."""
    began = time.perf_counter()
    try:
      yield
    finally:
      self.seconds[arm] = self.seconds.get(arm, 0.0) + time.perf_counter() - began
      self.write()

  def value(self, arm, trial, measure, compute):
    """What a measure gave for a run: kept, or computed now."""
    kept = self.measured.setdefault(arm, {}).setdefault(trial, {})
    if measure not in kept:
      began = time.perf_counter()
      value = compute()
      kept[measure] = {'value': value, 'seconds': round(time.perf_counter() - began, 3)}
      self.write()
    return kept[measure]['value']

  def seconds_measuring(self, arm):
    kept = self.measured.get(arm, {})
    return sum(found['seconds'] for of_trial in kept.values() for found in of_trial.values())


def check(path):
  """Raises UsageError unless a study can begin or go on in a folder; changes nothing."""
  if not path.exists():
    return
  if not path.is_dir():
    raise UsageError(f'{path}: is a file, not the folder of a study; choose another --workdir')
  strangers = sorted({entry.name for entry in path.iterdir()} - {run.LOCK, 'log.txt', f'.{STATE}.tmp'})
  if strangers and not (path / STATE).exists():
    raise UsageError(
      f'{path}: is not empty and not a study (it has {strangers[0]} and no {STATE}); choose another --workdir'
    )


@contextlib.contextmanager
def opened(path):
  """Makes the folder of a study or goes on in it, holds its lock, and gives its State. Raises UsageError."""
  path = pathlib.Path(path)
  check(path)
  with files.storage_errors(path):
    path.mkdir(parents=True, exist_ok=True)
  with run.hold_lock(path):
    yield State(path)
