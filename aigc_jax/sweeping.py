"""The verbs about sweeps in Python: `sweep(config, space)`, `load_sweep(folder)`."""

import hashlib
import json
import os
import pathlib
import re

from aigc_jax import models, tasks
from aigc_jax.errors import DataError, UsageError
from aigc_jax.sweeps import folder as sweep_folder
from aigc_jax.sweeps import launch, report
from aigc_jax.sweeps.trials import search_space_of, space_of, trials_of
from aigc_jax.training import step
from aigc_jax.training.console import Console


def find_trials(config, space, overrides, trust=False):
  """[Trial]; `space` is a list of override dicts, a text, or the name of a function of the config file."""
  if isinstance(space, str):
    if '=' not in space and not isinstance(config, str | os.PathLike):
      raise UsageError(f'sweep: {space!r} names a function of a config file, and the config is no file')
    space = space_of(str(config), space)
  config = str(config) if isinstance(config, os.PathLike) else config
  trials = trials_of(config, space, overrides, trust)
  for trial in trials:
    models.check(trial.config['model'])
    tasks.check(trial.config)
    step.check_rows(trial.config)
  return trials


def dry_run_sweep(config, space, overrides=(), lanes=None, trust=False):
  """Prints the trials, how they group, and what they would cost; writes nothing. Arguments: see `sweep`."""
  from aigc_jax.sweeps import estimate
  from aigc_jax.training.experiment import set_up

  set_up()
  estimate.dry_run(find_trials(config, space, overrides, trust), lanes)


def sweep(
  config,
  space,
  workdir=None,
  overrides=(),
  jobs=1,
  lanes=None,
  timeout=None,
  quiet=False,
  slurm=None,
  trust=False,
):
  """Trains the trials of a sweep and reports on them; the same call again finishes the rest.

  Args:
    config: 'FILE.py:VARIANT', a ConfigDict or nested dicts.
    space: [{dotted key: value}], one a trial (see `sweeps.space`); 'KEY=VALUE,VALUE;...'; or NAME of the config
      file's function sweep_NAME().
    workdir: the sweep's folder; None: one under runs/ that the trials name.
    overrides: [(dotted key, text or value)] of every trial.
    jobs: worker processes at a time. lanes: trials in one program at most. timeout: seconds without a sign of life
      that end a worker.
    slurm: parameters of Slurm's jobs, {'partition': 'gpu', 'timeout_min': 240}, which then run the groups; None: worker
      processes of this machine do.
    trust: whether to import models and tasks of the user's own, 'module:name' in a config.

  Returns: the folder's path.

  Raises:
    UsageError: before anything starts. Interrupted: by a signal, after saving. DataError: no trial came to its end.
  """
  trials, label = find_trials(config, space, overrides, trust), label_of(config)
  path = pathlib.Path(workdir or default_folder(label, sorted(trial.name for trial in trials)))
  options = launch.Options(jobs, timeout, lanes)
  starter = starter_of(path, options, slurm)
  with sweep_folder.opened(path, label, trials), Console(path / 'log.txt', quiet) as console:
    console.say(f'sweep folder: {path}, {len(trials)} trials')
    failed = launch.launch(path, trials, options, console, starter)
    conclude(path, failed, len(trials), console)
  return path


def search(
  config,
  space,
  trials,
  workdir=None,
  overrides=(),
  jobs=1,
  lanes=None,
  timeout=None,
  quiet=False,
  slurm=None,
  trust=False,
):
  """As `sweep`, where Optuna proposes `trials` trials by what those before them reached, and poor ones are pruned.

  space: {dotted key: sweeps.space.Between or [value]}; 'KEY=uniform(LOW,HIGH);KEY=A,B;...'; or NAME of the config
    file's function search_NAME().
  """
  from aigc_jax.sweeps import search as searching

  label = label_of(config)
  if isinstance(space, str):
    space = search_space_of(label or '', space)
  wanted = searching.Search(label or config, list(overrides), space, trials, trust)
  base = searching.check(wanted)
  searched = json.loads(json.dumps({'space': space, 'base': base}))
  path = pathlib.Path(workdir or default_folder(label, [json.dumps(searched, sort_keys=True)]))
  options = launch.Options(jobs, timeout, lanes, True)
  starter = starter_of(path, options, slurm)
  with sweep_folder.opened(path, label, [], searched), Console(path / 'log.txt', quiet) as console:
    console.say(f'sweep folder: {path}, {trials} trials proposed by Optuna')
    failed = searching.run_search(path, wanted, options, console, starter)
    conclude(path, failed, trials, console)
  return path


def starter_of(path, options, slurm):
  """What starts the workers, see `launch.launch`."""
  if slurm is None:
    return None
  from aigc_jax.sweeps.slurm import Slurm

  return Slurm(path, options, slurm)


def conclude(path, failed, count, console):
  """Writes the report. Raises DataError where no trial came to its end."""
  console.say(f'report: {report.report(path)[-1]}')
  if len(failed) == count:
    raise DataError(f'{path}: no trial came to its end; {next(iter(failed.values()))["message"]}')


def label_of(config):
  return str(config) if isinstance(config, str | os.PathLike) else None


def default_folder(label, parts):
  """runs/CONFIG-sweep-HASH: the same trials are always there."""
  name = re.sub(r'[^\w.]+', '-', re.sub(r'\.py\b', '', os.path.basename(label or 'python'))).strip('-.')
  return f'runs/{name}-sweep-{hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]}'
