"""What a sweep has reached so far, read from its folder: a row for each trial, and those of several seeds together.

It may be read at any time: what is half written is left out.
"""

import contextlib
import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from aigc_jax import files, run
from aigc_jax.errors import AigcError, UsageError
from aigc_jax.sweeps import folder as sweep_folder

SEEDS = ('seed', 'data.seed')
ENDED_BADLY = ('failed', 'non-finite')


class TrialRow(NamedTuple):
  """One trial."""

  name: str
  values: dict  # {swept key: value}
  state: str  # waiting, running, done, interrupted, failed or non-finite
  message: str
  step: int  # steps taken
  steps: int  # that it is to take
  best: float | None  # the metric at its best evaluation
  best_step: int | None
  last: dict  # {metric: its last value}
  seconds: float  # of one worker: what lanes took together is divided among them
  rows: list  # of metrics.jsonl
  path: Path


class Sweep(NamedTuple):
  """A sweep's folder."""

  path: Path
  config: str | None  # as it was typed
  metric: str
  higher_is_better: bool
  keys: list  # that are swept and differ, dotted
  trials: list  # [TrialRow]
  configs: dict  # {name: resolved config}


class Configuration(NamedTuple):
  """Trials that differ in seeds alone."""

  values: dict  # {swept key but the seeds: value}
  trials: list  # [TrialRow]
  mean: float | None  # of the trials that have a value and did not fail
  spread: float | None  # standard deviation over n - 1; None for fewer than two
  n: int
  failed: list  # [TrialRow]


def read_sweep(path, metric=None):
  """The Sweep of a folder.

  metric: what its trials are compared by; None: what they were trained for, `config.training.best_metric`.

  Raises UsageError where there is no such folder or metric, StorageError where sweep.json is damaged.
  """
  path = Path(path)
  facts = sweep_folder.read(path)
  configs = read_or(path / sweep_folder.CONFIGS, {})
  failures = read_or(path / sweep_folder.FAILURES, {})
  trials, chosen = facts['trials'], metric or facts.get('metric', 'validation/loss')
  keys = list(dict.fromkeys(key for trial in trials for key in trial['overrides']))
  values = {t['name']: {key: value_of(t, configs.get(t['name'], {}), key) for key in keys} for t in trials}
  differ = [key for key in keys if len({json.dumps(values[t['name']][key]) for t in trials}) > 1]
  higher = sweep_folder.is_higher_better(chosen, facts.get('higher_is_better', []))
  row = lambda name: trial_row(
    path / name, values[name], configs.get(name, {}), failures.get(name), chosen, higher
  )
  rows = [row(trial['name']) for trial in trials]
  known = sorted({name for row in rows for name in row.last if not name.startswith('time/')})
  if metric is not None and known and metric not in known:
    raise UsageError(f'{path}: its trials have no metric {metric!r}; they have {", ".join(known)}')
  return Sweep(path, facts.get('config'), chosen, higher, differ or keys, rows, configs)


def read_or(path, otherwise):
  """A JSON file, or `otherwise` where it is missing or half written."""
  with contextlib.suppress(AigcError):
    return files.read_json(path)
  return otherwise


def value_of(trial, config, key):
  if key in trial['overrides']:
    return trial['overrides'][key]
  section, _, name = key.rpartition('.')
  return (config.get(section, {}) if section else config).get(name)


def trial_row(path, values, config, failure, metric, higher):
  status, rows, starts = {'state': 'waiting', 'step': 0, 'message': ''}, [], []
  if (path / run.CONFIG).exists():
    with contextlib.suppress(AigcError):
      status = run.Run(path).read_status()
    with contextlib.suppress(AigcError):
      rows = run.read_metrics(path)
    starts = read_or(path / run.ENVIRONMENT, [])
  if failure is not None and status['state'] != 'done':
    status = status | {'state': 'failed', 'message': failure['message']}
  found = [(row[metric], row['step']) for row in rows if math.isfinite(row.get(metric, math.nan))]
  best, best_step = (max if higher else min)(found, key=lambda pair: pair[0], default=(None, None))
  last = {name: value for row in rows for name, value in row.items() if name != 'step'}
  step = max([status['step'], *(row['step'] for row in rows[-1:])])
  steps = config.get('training', {}).get('steps', 0)
  seconds = seconds_of(rows, [start.get('lanes', 1) for start in starts])
  return TrialRow(
    path.name,
    values,
    status['state'],
    status['message'],
    step,
    steps,
    best,
    best_step,
    last,
    seconds,
    rows,
    path,
  )


def seconds_of(rows, lanes):
  """What a trial cost: the clock of each start (it begins anew with each), divided by the lanes that shared it."""
  clocks, ends = [row['time/seconds'] for row in rows if 'time/seconds' in row], []
  for place, clock in enumerate(clocks):
    if place + 1 == len(clocks) or clocks[place + 1] < clock:
      ends.append(clock)
  shared = lanes[-len(ends) :] if ends and len(lanes) >= len(ends) else [1] * len(ends)
  return sum(end / count for end, count in zip(ends, shared, strict=True))


def configurations(sweep):
  """[Configuration], the best mean first, those without a value last."""
  groups = {}
  keys = [key for key in sweep.keys if key not in SEEDS]
  for trial in sweep.trials:
    values = {key: trial.values[key] for key in keys}
    groups.setdefault(json.dumps(values), (values, []))[1].append(trial)
  found = [configuration(values, trials) for values, trials in groups.values()]
  sign = -1 if sweep.higher_is_better else 1
  return sorted(found, key=lambda c: math.inf if c.mean is None else sign * c.mean)


def configuration(values, trials):
  failed = [trial for trial in trials if trial.state in ENDED_BADLY]
  found = [trial.best for trial in trials if trial.best is not None and trial.state not in ENDED_BADLY]
  mean = statistics.fmean(found) if found else None
  spread = statistics.stdev(found) if len(found) > 1 else None
  return Configuration(values, trials, mean, spread, len(found), failed)


def table(sweep):
  """([column], [row]): one row a trial, as table.csv and `load_sweep` have it; None where there is no value."""
  lasts = sorted({n for t in sweep.trials for n in t.last if n.startswith('validation/')} - {sweep.metric})
  columns = ['trial', *sweep.keys, 'state', 'message', 'step', sweep.metric, 'best_step', 'train/loss']
  columns += [*lasts, 'cost_seconds', 'path']
  rows = []
  for trial in sweep.trials:
    values = [
      trial.name,
      *(plain(trial.values[key]) for key in sweep.keys),
      trial.state,
      trial.message,
      trial.step,
    ]
    values += [
      trial.best,
      trial.best_step,
      trial.last.get('train/loss'),
      *(trial.last.get(name) for name in lasts),
    ]
    rows.append([*values, round(trial.seconds, 3), str(trial.path)])
  return columns, rows


def plain(value):
  return json.dumps(value) if isinstance(value, list | dict) else value


def load_sweep(path, metric=None) -> Any:
  """A pandas DataFrame of a sweep's folder, one row a trial; the columns are those of table.csv.

  metric: whose best value a trial's row has, 'validation/elbo'; None: `config.training.best_metric`.

  Raises UsageError where there is no such folder or metric, or no pandas.
  """
  try:
    import pandas
  except ImportError as error:
    raise UsageError("load_sweep: needs pandas; pip install 'aigc-jax[sweeps]'") from error
  columns, rows = table(read_sweep(path, metric))
  return pandas.DataFrame(rows, columns=columns)
