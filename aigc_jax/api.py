"""The verbs in Python: `run = train(config)`, `run = load_run(path)`, `run.generate('Call me', num=4)`."""

import contextlib
import os
import time
from pathlib import Path

from aigc_jax import run as run_folder
from aigc_jax.errors import UsageError
from aigc_jax.schemas import config_of, read_config, resolved, schemas
from aigc_jax.trained_run import TrainedRun
from aigc_jax.training import checkpoint, experiment, prepare, processes, profiling
from aigc_jax.training import dry_run as dry_runs
from aigc_jax.training.console import Console
from aigc_jax.training.experiment import set_up


def dry_run(config, workdir=None, overrides=()):
  """Checks everything and prints parameters, memory and FLOPs of the compiled step; writes nothing."""
  set_up()
  show = print if processes.leads() else lambda text: None
  dry_runs.dry_run(prepare_in(workdir, read_config(config, overrides)), show)


def train(config, workdir=None, overrides=(), quiet=False, began=None, profile=None):
  """Trains an experiment.

  Args:
    config: 'FILE.py:VARIANT', a ConfigDict or nested dicts with any part of the fields.
    workdir: the run folder; None: a readable new one under runs/. A folder of the same config is resumed.
    overrides: [(dotted key, text or value)].
    quiet: print nothing.
    began: `time.perf_counter()` when the user asked, for the time to the first step; None: now.
    profile: '10:15' writes a trace of steps 10 to 15 into the run folder's profile/.

  Returns:
    The TrainedRun.

  Raises:
    AigcError: its one line says what, where and what would be right; nothing is left behind by a bad config.
  """
  set_up()
  began = began or time.perf_counter()
  label = str(config) if isinstance(config, str | os.PathLike) else 'run'
  return start(read_config(config, overrides), workdir, label, began, quiet, profile=profile)


def prepare_in(workdir, config, may_differ=()):
  """The Experiment of a resolved config, in a run folder that may have begun. Refuses a folder of another config."""
  if workdir is None or not os.path.exists(workdir):
    return prepare.prepare(config)
  path, config = Path(workdir), prepare.fill_in(config)
  run_folder.check_folder(path, config, {*may_differ, *schemas().open_fields(config)}, resolved)
  begun = (path / run_folder.CONFIG).exists()
  return prepare.prepare(config, run_folder.open_run(path) if begun else None)


def start(config, workdir, label, began, quiet=False, may_differ=(), profile=None):
  traced = profiling.span(profile, config['training']['steps'])
  prepared = prepare_in(workdir, config, may_differ)
  steps, choices = prepared.config['training']['steps'], {'may_differ': may_differ, 'label': label}
  leads = processes.leads()
  quiet = quiet or not leads
  with open_folder(workdir, prepared.config, **choices) as folder:
    status = processes.agree(folder.read_status)
    if status['state'] == 'done' and (status['step'] >= steps or status['message'] == 'early stop'):
      with Console(quiet=quiet) as console:
        console.say(f'{folder.path}: is done, {status["step"]} steps; nothing to do')
        suggest(folder.path, prepared, console)
      return load_run(folder.path)
    with Console(folder.path / 'log.txt' if leads else None, quiet) as console:
      experiment.train(prepared, folder, console, began, traced if leads else None)
      if leads:
        console.say(f'loss curve: {experiment.loss_curve(folder.path, prepared.task.unit)}')
      suggest(folder.path, prepared, console)
  return load_run(folder.path)


@contextlib.contextmanager
def open_folder(workdir, config, **choices):
  """`run.create`; of several processes the first one makes and writes the folder, and the others follow."""
  processes.wait_for_all('prepared')  # all have read what was in the folder before
  with contextlib.ExitStack() as stack:

    def create():
      begin = stack.enter_context(experiment.nothing_left(workdir))
      return begin(stack.enter_context(run_folder.create(workdir, config, upgrade=resolved, **choices)))

    path = Path(processes.agree(lambda: str(create().path)))
    yield run_folder.Run(path) if processes.leads() else run_folder.Follower(path)


def suggest(path, prepared, console):
  """Tells what to type next."""
  config, task, commands = prepared.config, prepared.task, [f'aigc eval {path}']
  if task.prompts is not None:
    commands.insert(0, f'aigc generate {path} --prompt="..." --num=4')
  elif task.fills_masks:
    commands.insert(0, f'aigc generate {path} --prompt="... [MASK] ..."')
  elif task.draw is not None:
    commands.insert(0, f'aigc generate {path} --num=16')
  if experiment.learns_after(config['training']['steps'], config):
    commands.append(f'aigc resume {path} --steps=...')
  for i, command in enumerate(commands):
    console.say(f'{"     " if i else "next:"} {command}')


def resume(path, steps=None, quiet=False, began=None, profile=None):
  """Goes on with a run from its newest good checkpoint; `steps` makes it longer. Returns the TrainedRun."""
  set_up()
  began, config = began or time.perf_counter(), config_of(path)
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
  return start(resolved(config), path, 'run', began, quiet, experiment.EXTENSIBLE, profile)


def load_run(path, which='best'):
  """A trained run, ready to use. `which`: 'best' (by config.training.best_metric), 'latest' or a step."""
  return TrainedRun(Path(path), which)
