"""From a resolved config to a trained run folder: prepared, opened, trained, and what to type next."""

import contextlib
import os
from pathlib import Path

from aigc_jax import own_code
from aigc_jax import run as run_folder
from aigc_jax.schemas import resolved, schemas
from aigc_jax.training import experiment, prepare, processes, profiling
from aigc_jax.training.console import Console


def prepare_in(workdir, config, may_differ=()):
  """The Experiment of a resolved config, in a run folder that may have begun. Refuses a folder of another config."""
  if workdir is None or not os.path.exists(workdir):
    return prepare.prepare(config)
  path, config = Path(workdir), prepare.fill_in(config)
  run_folder.check_folder(path, config, {*may_differ, *schemas().open_fields(config)}, resolved)
  begun = (path / run_folder.CONFIG).exists()
  return prepare.prepare(config, run_folder.open_run(path) if begun else None)


def start(config, workdir, label, began, quiet=False, may_differ=(), profile=None):
  """Trains the experiment of a resolved config in its run folder, new or begun. Returns the folder's path.

  Args: as `api.train` has them. may_differ: dotted keys that may have another value in the folder.
  """
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
      return folder.path
    with Console(folder.path / 'log.txt' if leads else None, quiet) as console:
      experiment.train(prepared, folder, console, began, traced if leads else None)
      if leads:
        metric = prepared.config['training']['best_metric']
        console.say(f'loss curve: {experiment.draw_curves(folder.path, prepared.task, metric)}')
      suggest(folder.path, prepared, console)
  return folder.path


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
    console.say(f'{"     " if i else "next:"} {command}{own_code.flag(config)}')
