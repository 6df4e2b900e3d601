"""A group of trials run to its end in this process: as lanes where they can be, else one after another."""

import pathlib

from aigc_jax import run
from aigc_jax.sweeps import folder as sweep_folder
from aigc_jax.sweeps import lanes
from aigc_jax.sweeps.trials import can_be_lanes
from aigc_jax.training import checkpoint, session


def never(lane, step, found):
  """The `prune` of a sweep that stops no trial early."""


def run_group(folder, names, console, share=1, began=0.0, prune=never):
  """Runs trials of a sweep's folder from where they are; those that have ended stay as they are.

  Args:
    names: of trials of one structure.
    share: workers that share this machine's memory. began: `time.perf_counter()` at the start of the process.
    prune: see `lanes.run_lanes`.

  Raises: AigcError, after which the same call goes on.
  """
  folder = pathlib.Path(folder)
  run_trials(folder, sweep_folder.trials_in(folder, names), console, share, began, prune)


def run_trials(folder, trials, console, share, began, prune):
  if all(sweep_folder.has_ended(folder / trial.name) for trial in trials):
    return
  together = can_be_lanes(trials[0].config)
  if not together or (len(trials) == 1 and prune is never):
    for trial in trials:
      run_alone(folder, trial, console, began)
    return
  parts = by_progress(folder, trials)
  if len(parts) == 1:
    (trials,) = parts
    try:
      return lanes.run_lanes(folder, trials, console, share, prune)
    except lanes.Apart as error:
      console.say(f'{len(trials)} lanes {error}')
      parts = [trials[first : first + error.lanes] for first in range(0, len(trials), error.lanes)]
  for part in parts:
    run_trials(folder, part, console, share, began, prune)


def by_progress(folder, trials):
  """The trials in groups whose own checkpoints are of one step; those that a group's checkpoint holds, as they are."""
  if checkpoint.steps(folder / lanes.GROUPS / lanes.group_name(trials) / 'checkpoints'):
    return [trials]
  lanes.release(folder, trials)
  at = lambda trial: (
    -1
    if sweep_folder.has_ended(folder / trial.name)
    else checkpoint.latest(folder / trial.name / 'checkpoints') or 0
  )
  groups = {}
  for trial in trials:
    groups.setdefault(at(trial), []).append(trial)
  groups.pop(-1, None)
  return list(groups.values())


def run_alone(folder, trial, console, began):
  """One trial as `aigc train` would run it."""
  if sweep_folder.has_ended(folder / trial.name):
    return
  lanes.release(folder, [trial])
  console.say(f'{trial.name}: alone')
  try:
    session.start(trial.config, folder / trial.name, 'run', began, quiet=True)
  finally:
    if (folder / trial.name / run.STATUS).exists():
      status = run.Run(folder / trial.name).read_status()
      console.say(f'{trial.name}: {status["state"]} after step {status["step"]}')
