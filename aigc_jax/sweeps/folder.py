"""The folder of a sweep: which trials it has, where each runs, and what went wrong outside of them.

sweep.json     the trials in order, their overrides, and the metric that they are compared by
configs.json   {name: resolved config}
search.json    what a search looks through, where Optuna proposes the trials
failures.json  {name: {message, attempts}} of trials whose process failed
NAME/          the run folder of a trial, once it has begun
groups/        what groups of lanes have while they run, and the lines of their processes
"""

import contextlib
import json
import pathlib
import re

from aigc_jax import files, run, tasks
from aigc_jax.errors import UsageError
from aigc_jax.sweeps.trials import Trial, shown

FORMAT = 1
SWEEP, CONFIGS, FAILURES, SEARCH = 'sweep.json', 'configs.json', 'failures.json', 'search.json'


@contextlib.contextmanager
def opened(path, label, trials, search=None):
  """Makes the folder of a sweep, or goes on in one of the same sweep, perhaps with more trials, and holds its lock.

  search: what is searched, as JSON, where the trials are not yet known; None: no search.

  Raises UsageError for a folder of another sweep, in use, or of something else; StorageError.
  """
  path = pathlib.Path(path)
  check(path, trials, search)
  with files.storage_errors(path):
    path.mkdir(parents=True, exist_ok=True)
  with run.hold_lock(path):
    check(path, trials, search)
    if search is None:
      write(path, label, trials)
    else:
      files.write_json(path / SEARCH, search)
    yield path


def check(path, trials, search=None):
  """Raises UsageError unless these trials can start or go on in a folder; changes nothing."""
  if not path.exists():
    return
  if not path.is_dir():
    raise UsageError(f'{path}: is a file, not the folder of a sweep; choose another --workdir')
  if not (path / SWEEP).exists():
    with files.storage_errors(path):
      ours = {
        run.LOCK,
        CONFIGS,
        SEARCH,
        'log.txt',
        'slurm',
        *(f'.{name}.tmp' for name in (SWEEP, SEARCH, CONFIGS)),
      }
      strangers = sorted({entry.name for entry in path.iterdir()} - ours)
    if strangers:
      raise UsageError(
        f'{path}: is not empty and not a sweep (it has {strangers[0]} and no {SWEEP}); choose another --workdir'
      )
    return
  before = files.read_json(path / SEARCH) if (path / SEARCH).exists() else None
  if before != search:
    what = 'a sweep without a search' if before is None else f'a search of {before["space"]}'
    raise UsageError(f'{path}: holds {what}, and this is another; choose another --workdir')
  if search is not None:
    return
  here, there = {trial.name for trial in trials}, read(path)['trials']
  others = [trial for trial in there if trial['name'] not in here]
  if others:
    raise UsageError(
      f'{path}: holds another sweep: {len(others)} of its {len(there)} trials are not in this one, such as '
      f'{shown(others[0]["overrides"])}; choose another --workdir'
    )


def write(path, label, trials):
  configs = {trial.name: trial.config for trial in trials}
  files.write_atomically(path / CONFIGS, json.dumps(configs, ensure_ascii=False))
  entries = [{'name': trial.name, 'overrides': trial.overrides} for trial in trials]
  facts = {'format': FORMAT, 'config': label, **judged_by(trials[0].config)} if trials else {'format': FORMAT}
  files.write_json(path / SWEEP, facts | {'trials': entries})


def judged_by(config):
  """The metric that trials are compared by, and those of which more is better."""
  return {'metric': config['training']['best_metric'], 'higher_is_better': tasks.higher_is_better(config)}


def is_higher_better(metric, names):
  """Whether more is better of a metric, also where it is of one class ('validation/accuracy_3')."""
  return re.sub(r'_\d+$', '', metric) in names


def read(path):
  """sweep.json. Raises UsageError where there is none, or it is of a newer format."""
  path = pathlib.Path(path)
  if not (path / SWEEP).exists():
    raise UsageError(f'{path}: no such sweep folder (it has no {SWEEP}); `aigc sweep` makes one')
  found = files.read_json(path / SWEEP)
  if found.get('format', 0) > FORMAT:
    raise UsageError(
      f'{path}: written by a newer aigc_jax (format {found["format"]}, this one reads up to {FORMAT}); '
      'upgrade aigc_jax'
    )
  return found


def trials_in(path, names=None):
  """[Trial] of a sweep's folder: all of them, or those named, in the order given."""
  overrides = {trial['name']: trial['overrides'] for trial in read(path)['trials']}
  configs = files.read_json(pathlib.Path(path) / CONFIGS)
  return [Trial(name, overrides[name], configs[name]) for name in names or overrides]


def failures(path):
  file = pathlib.Path(path) / FAILURES
  return files.read_json(file) if file.exists() else {}


def write_failures(path, found):
  files.write_json(pathlib.Path(path) / FAILURES, found)


def state_of(path):
  """The status of a trial's run folder; 'waiting' where it has not begun."""
  if not (path / run.CONFIG).exists():
    return {'state': 'waiting', 'step': 0, 'checkpoint': None, 'message': ''}
  return run.Run(path).read_status()


def has_ended(path):
  """Whether a trial is not to be taken up again: it is done, was pruned, or met a number that is not finite."""
  status = state_of(path)
  return status['state'] in ('done', 'non-finite') or status['message'].startswith('pruned')
