"""The verbs in Python: `run = train(config)`, `run = load_run(path)`, `run.generate('Call me', num=4)`."""

import os
import time
from pathlib import Path

from aigc_jax import run as run_folder
from aigc_jax.errors import UsageError
from aigc_jax.schemas import config_of, read_config, resolved
from aigc_jax.trained_run import TrainedRun
from aigc_jax.training import checkpoint, experiment, processes, session
from aigc_jax.training import dry_run as dry_runs
from aigc_jax.training.experiment import set_up


def dry_run(config, workdir=None, overrides=(), trust=False):
  """Checks everything and prints parameters, memory and FLOPs of the compiled step; writes nothing."""
  set_up()
  show = print if processes.leads() else lambda text: None
  dry_runs.dry_run(session.prepare_in(workdir, read_config(config, overrides, trust)), show)


def train(config, workdir=None, overrides=(), quiet=False, began=None, profile=None, trust=False):
  """Trains an experiment.

  Args:
    config: 'FILE.py:VARIANT', a ConfigDict or nested dicts with any part of the fields.
    workdir: the run folder; None: a readable new one under runs/. A folder of the same config is resumed.
    overrides: [(dotted key, text or value)].
    quiet: print nothing.
    began: `time.perf_counter()` when the user asked, for the time to the first step; None: now.
    profile: '10:15' writes a trace of steps 10 to 15 into the run folder's profile/.
    trust: whether to import models and tasks of the user's own, 'module:name' in the config.

  Returns:
    The TrainedRun.

  Raises:
    AigcError: its one line says what, where and what would be right; nothing is left behind by a bad config.
  """
  set_up()
  began = began or time.perf_counter()
  label = str(config) if isinstance(config, str | os.PathLike) else 'run'
  return load_run(
    session.start(read_config(config, overrides, trust), workdir, label, began, quiet, profile=profile)
  )


def resume(path, steps=None, quiet=False, began=None, profile=None, trust=False):
  """Goes on with a run from its newest good checkpoint; `steps` makes it longer. Returns the TrainedRun."""
  set_up()
  began, config = began or time.perf_counter(), config_of(path, trust)
  if run_folder.open_run(path).read_status()['message'] == 'imported':
    raise UsageError(
      f'{path}: was imported, with no optimizer to go on with; train from it by --config.init_from={path}'
    )
  if steps is not None:
    status = run_folder.open_run(path).read_status()
    done = max(status['step'], checkpoint.latest(Path(path) / 'checkpoints') or 0)
    if steps < done:
      raise UsageError(f'--steps={steps}: {path} has taken {done} steps already; give more, or leave it out')
    if status['message'] == 'early stop':
      raise UsageError(
        f'--steps={steps}: {path} ended at step {done} by config.training.patience; to train on, start a new run '
        f'with --config.init_from={path}'
      )
    config = config | {'training': config['training'] | {'steps': steps}}
  return load_run(session.start(resolved(config), path, 'run', began, quiet, experiment.EXTENSIBLE, profile))


def from_pretrained(source, workdir=None, quiet=False):
  """A folder of Hugging Face's files, or a name on its hub, as a run: makes the run folder. Returns the TrainedRun."""
  from aigc_jax import importing

  return load_run(importing.import_folder(source, workdir, (lambda line: None) if quiet else print))


def export(run, folder):
  """Writes the model of a run (a TrainedRun or its folder) as files of Hugging Face. Returns their names."""
  from aigc_jax import exporting

  return exporting.export(run if isinstance(run, TrainedRun) else load_run(run), folder)


def card(run, output=None, **choices):
  """Writes a README for a run (a TrainedRun or its folder), see `TrainedRun.card`. Returns its path."""
  return (run if isinstance(run, TrainedRun) else load_run(run)).card(output, **choices)


def load_run(path, which='best', trust=False):
  """A trained run, ready to use. `which`: 'best' (by config.training.best_metric), 'latest' or a step.

  trust: whether to import models and tasks of its user's own, 'module:name' in its config.
  """
  return TrainedRun(Path(path), which, trust)
