"""The dry run of a sweep: its trials, how they group, and what they would cost by one compiled step of each group."""

import pathlib
import time

import jax
import numpy as np

from aigc_jax.sweeps import lanes, stack
from aigc_jax.sweeps.trials import can_be_lanes, differing, groups_of, shown, value_at
from aigc_jax.training import memory_use, placement, prepare
from aigc_jax.training.console import clock, size, table

TIMED = 3  # steps, after one that warms up


def dry_run(trials, limit=None, show=print):
  """Shows the trials of a sweep, their groups and their cost; writes nothing. `limit`: lanes of a group at most."""
  keys = differing(trials) or list(trials[0].overrides)
  groups = groups_of(trials)
  rows = [('trial', 'group', *(key.rpartition('.')[2] for key in keys))]
  for number, group in enumerate(groups, 1):
    rows += [(t.name, str(number), *(str(value_at(t.config, key)) for key in keys)) for t in group]
  show('\n'.join(table(rows)))
  seconds = sum(estimate(number, group, limit, show) for number, group in enumerate(groups, 1))
  show(f'in all: {len(trials)} trials, {clock(seconds)} of steps on this machine by one worker')


def estimate(number, trials, limit, show):
  """Shows what a group needs; returns the seconds that its steps would take."""
  together = can_be_lanes(trials[0].config)
  count = min(len(trials), limit or len(trials)) if together else 1
  began = time.perf_counter()
  count, take, state, peak = as_lanes(trials[:count]) if count > 1 else alone(trials[0])
  step_seconds = timed(take, state)
  steps, rounds = trials[0].config['training']['steps'], -(-len(trials) // count)
  how = f'{count} lanes' if count > 1 else 'alone'
  several = f', {rounds} times one after another' if rounds > 1 else ''
  show(
    f'group {number}: {len(trials)} trials, {how}{several}; {1000 * step_seconds:.1f} ms a step, {steps:,} steps; '
    f'{size(peak)} on a device; compiled in {time.perf_counter() - began:.1f} s; such as {shown(trials[0].overrides)}'
  )
  return step_seconds * steps * rounds


def as_lanes(trials):
  """(lanes that fit, a step of all as state -> state, their state, bytes on a device)."""
  try:
    made = lanes.plan(pathlib.Path('/nonexistent'), trials)
  except lanes.Apart as error:
    return as_lanes(trials[: error.lanes]) if error.lanes > 1 else alone(trials[0])
  stacked = made.stack
  on = stacked.way.flags(np.ones(stacked.count, bool))
  carry = stacked.way.first(stack.first_state(stacked))
  batch = stack.batch_at(stacked, 0)
  compiled = made.compiled[placement.shape_of(batch)]
  return len(trials), lambda carry: compiled(carry, batch, on)[0], carry, made.peak


def alone(trial):
  """(1, a step of a solo run as state -> state, its state, bytes on a device)."""
  experiment = prepare.prepare(trial.config)
  prepared = placement.place(experiment)
  compiled, _ = placement.compile_steps(experiment, prepared)
  state = prepared.program.init(prepared.floats, prepared.key, prepared.example)
  batch, step = (
    placement.batch_on_devices(prepared, experiment.dataset, 0),
    placement.step_function(prepared, compiled),
  )
  peak = memory_use.of_program(compiled[placement.shape_of(batch)]).peak
  return 1, lambda state: step(state, batch)[0], state, peak


def timed(take, state):
  """Seconds of a step: state -> state."""
  state = jax.block_until_ready(take(state))
  began = time.perf_counter()
  for _ in range(TIMED):
    state = take(state)
  jax.block_until_ready(state)
  return (time.perf_counter() - began) / TIMED
