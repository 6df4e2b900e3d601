"""Checkpoints move: saved under each layout, restored under each other one, and trained on.

  python -m tests.restores [FAMILY ...]

prints the largest relative difference of the next 20 losses from those of the run that was saved (rows: where it was
saved; columns: where it went on), and asserts that every array comes back bit for bit and the next batch is the same.
"""

import os
import pathlib
import sys
import tempfile

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np

from aigc_jax.training import checkpoint, placement, state_leaves
from tests import equality, tiny

BEFORE, AFTER = 5, 20  # steps
PLACES = (
  *[('data', n) for n in (1, 2, 4, 8)],
  *[('fsdp', n) for n in (2, 4, 8)],
  ('tensor', 2),
  ('mixed', 8),
  *[('pmap', n) for n in (2, 4, 8)],
)


def go_on(made, placed, state, first, steps):
  """(losses [steps], State) of the steps after `first`."""
  losses = []
  for i in range(first, first + steps):
    batch = placement.batch_on_devices(placed, made.dataset, i)
    state, metrics = placed.program.step(placed.floats, state, batch)
    losses.append(float(metrics['loss']))  # awaited, since many pretended devices share two cores
  return np.array(losses), state


def bits(state):
  return {path: array.tobytes() for path, array in state_leaves.host_copies(checkpoint.flat(state)).items()}


def save(made, placed, folder):
  """Trains under a layout and saves half way. Returns (losses after that, what was saved, the next batch)."""
  state = placed.program.init(placed.floats, placed.key, placed.example)
  _, state = go_on(made, placed, state, 0, BEFORE)
  with checkpoint.Checkpointer(folder, keep=1) as saver:
    saver.save(BEFORE, state)
    saved = bits(state)
    losses, _ = go_on(made, placed, state, BEFORE, AFTER)
  return losses, saved, made.dataset.train_batch(BEFORE)


def restore(made, placed, folder, saved):
  """The largest relative difference of the losses of what was saved in a folder, going on under another layout."""
  losses, arrays, batch = saved
  step, state = checkpoint.restore(folder, placed.target)
  assert step == int(state.step) == BEFORE
  assert bits(state) == arrays
  for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(placed.target), strict=True):
    assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
  jax.tree.map(np.testing.assert_array_equal, made.dataset.train_batch(step), batch)
  ours, _ = go_on(made, placed, state, step, AFTER)
  return float(np.abs(ours / losses - 1).max())


def matrix(config, places, folder):
  """[places it was saved, places it went on] of differences."""
  programs = [equality.prepared(config, *place) for place in places]
  found = []
  for i, program in enumerate(programs):
    saved = save(*program, pathlib.Path(folder) / str(i))
    found.append([restore(*other, pathlib.Path(folder) / str(i), saved) for other in programs])
  return np.array(found)


def main():
  jax.config.update('jax_num_cpu_devices', 8)
  jax.config.update('jax_disable_most_optimizations', True)  # compiling is most of it
  names = [f'{layout} {n}' for layout, n in PLACES]
  for family in sys.argv[1:] or ('transformer',):
    with tempfile.TemporaryDirectory() as folder:
      source = tiny.write_corpus(pathlib.Path(folder) / 'words.txt')
      found = matrix(equality.FAMILIES[family](source), PLACES, folder)
    print(f'| {family}, saved under | ' + ' | '.join(names) + ' |\n' + '|---' * (len(names) + 1) + '|')
    for name, row in zip(names, found, strict=True):
      print(f'| {name} | ' + ' | '.join(f'{difference:.0e}' for difference in row) + ' |')
    print(f'the largest: {found.max():.1e}', flush=True)


if __name__ == '__main__':
  main()
