"""Every family as lanes and alone: how far three lanes are from the three runs that they stand for.

  python -m tests.sweeps.lane_equality [FAMILY ...]

prints, for each, the largest relative difference of a step's loss over 100 steps, and the norm of the difference of the
final parameters over their norm. The lanes differ in learning rate, dropout, seed and, the third, in data.seed.
"""

import os
import pathlib
import sys
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np

from aigc_jax import api
from aigc_jax.sweeps import lanes, stack
from aigc_jax.sweeps.trials import groups_of, trials_of
from aigc_jax.training import checkpoint, placement, state_leaves
from tests import equality, tiny

STEPS = 100
CHANGES = [
  {'optimizer.learning_rate': 1e-3, 'seed': 0},
  {'optimizer.learning_rate': 3e-4, 'seed': 1},
  {'optimizer.learning_rate': 1e-3, 'seed': 2, 'data.seed': 5},
]


def trials_of_family(family, source, changes=CHANGES, **training):
  config = equality.FAMILIES[family](source)
  config['training'] = config.get('training', {}) | training
  changes = [dict(change) for change in changes]
  model = api.read_config(config)['model']
  if 'dropout' in model:
    name = (
      'variational_dropout' if 'variational_dropout' in model else 'dropout'
    )  # the other acts between layers
    for rate, change in zip((0.1, 0.2, 0.3), changes, strict=True):
      change[f'model.{name}'] = rate
  if 'buckets' in config['data']:
    changes = [change | ({'data.seed': 0} if 'data.seed' in change else {}) for change in changes]
  return trials_of(config | {'parallel': {'data': 1}}, changes)


def run_lanes(trials, devices, steps=STEPS):
  """(losses [steps, lanes], [final State of each])."""
  made = lanes.plan(pathlib.Path('/nonexistent'), trials, devices=devices)
  stacked, way = made.stack, made.stack.way
  carry, losses, going = way.first(stack.first_state(stacked)), [], way.flags(np.ones(stacked.count, bool))
  for i in range(steps):
    batch = stack.batch_at(stacked, i)
    carry, metrics = made.compiled[placement.shape_of(batch)](carry, batch, going)
    losses.append(np.array(jax.device_get(metrics['loss'])))
  return np.array(losses), [way.lane(carry.state, lane) for lane in range(len(trials))]


def differences(trials, devices=None, steps=STEPS):
  """[(largest relative difference of a loss, relative distance of the final parameters)] of each lane."""
  losses, states = run_lanes(trials, devices or jax.local_devices()[:1], steps)
  found = []
  for lane, trial in enumerate(trials):
    ours = losses[:, lane], states[lane]
    found.append(equality.differences(ours, equality.run(trial.config, steps=steps)))
  return found


def parameters(state):
  return state_leaves.host_copies(checkpoint.flat(state.params))


def main(families):
  with tempfile.TemporaryDirectory() as folder:
    source = tiny.write_corpus(pathlib.Path(folder) / 'words.txt')
    print('| family | loss | parameters |\n|---|---|---|')
    for family in families or equality.FAMILIES:
      trials = trials_of_family(family, source)
      assert len(groups_of(trials)) == 1
      found = differences(trials)
      loss, distance = (max(numbers) for numbers in zip(*found, strict=True))
      print(f'| {family} | {loss:.0e} | {distance:.0e} |', flush=True)
      jax.clear_caches()


if __name__ == '__main__':
  main(sys.argv[1:])
