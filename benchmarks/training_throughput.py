"""Training tokens per second of our step against the same model in PyTorch, side by side on this CPU.

  python benchmarks/training_throughput.py [--shape=nanogpt|medium] [--rounds=8] [--no-compiled]

Ours is the step that `aigc train` runs; PyTorch's is eager, and compiled where torch.compile works. The three
take turns in bursts of half a second; the fastest and the median burst are printed. Compilation is not timed.
"""

import argparse
import statistics
import time

import jax
import numpy as np
import peers_torch
import torch

from aigc_jax import config as configs
from aigc_jax import memory, models, tasks
from aigc_jax.training import parallel
from aigc_jax.training.optimizer import OptimizerConfig

SHAPES = {  # name: (model, rows of a batch)
  'nanogpt': ({'layers': 4, 'heads': 4, 'width': 128, 'context_length': 64, 'vocabulary_size': 83}, 12),
  'medium': ({'layers': 6, 'heads': 6, 'width': 384, 'context_length': 256, 'vocabulary_size': 83}, 4),
}


def make_batch(shape, rows):
  tokens = np.random.default_rng(0).integers(
    0, shape['vocabulary_size'], (rows, shape['context_length'] + 1), dtype=np.int32
  )
  return tokens[:, :-1], tokens[:, 1:]


def ours(shape, rows):
  """A function (steps) that takes as many of the step that `aigc train` runs."""
  config = configs.resolve(
    {
      'task': {'name': 'language'},
      'model': {'name': 'transformer', 'bias': False, 'activation': 'gelu', **shape},
      'data': {'batch_size': rows, 'sequence_length': shape['context_length']},
      'optimizer': {
        'name': 'adamw',
        'learning_rate': 1e-3,
        'beta2': 0.99,
        'schedule': 'constant',
        'weight_decay': 0.1,
        'clip_norm': 1.0,
      },
    },
    configs.Schemas(tasks.SCHEMAS, models.SCHEMAS, OptimizerConfig, tasks.data_schema),
  )
  program = parallel.make_parallel(config, tasks.build, jax.devices()[:1])
  floats, (inputs, targets) = program.put_floats(configs.floats_of(config)), make_batch(shape, rows)
  batch = program.put_batch({'inputs': inputs, 'targets': targets, 'mask': np.ones(inputs.shape, np.float32)})
  state = program.init(floats, jax.random.key(0), batch)

  def run(steps):
    nonlocal state
    for _ in range(steps):
      state, metrics = program.step(floats, state, batch)
    return float(metrics['loss'])

  return run


def theirs(shape, rows, compiled):
  step = peers_torch.make_step(shape, compiled)
  inputs, targets = (torch.tensor(a, dtype=torch.int64) for a in make_batch(shape, rows))
  return lambda steps: [step(inputs, targets) for _ in range(steps)][-1]


def race(runs, rounds):
  """{name: run(steps)} -> {name: seconds of a step in each burst}, the runs taking turns."""
  steps = {}
  for name, run in runs.items():
    run(3)  # compiles, and warms up
    start = time.perf_counter()
    run(1)
    steps[name] = max(1, round(0.5 / (time.perf_counter() - start)))
  seconds = {name: [] for name in runs}
  for _ in range(rounds):
    for name, run in runs.items():
      time.sleep(0.3)  # lets the other library's threads stop spinning
      start = time.perf_counter()
      run(steps[name])
      seconds[name].append((time.perf_counter() - start) / steps[name])
  return seconds


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--shape', choices=SHAPES, help='default: all')
  parser.add_argument('--rounds', type=int, default=8)
  parser.add_argument('--no-compiled', action='store_true', help='leave torch.compile out')
  args = parser.parse_args()
  memory.keep_freed_memory()
  print('tokens/s, fastest burst (median); ratio to eager PyTorch')
  for name in [args.shape] if args.shape else SHAPES:
    shape, rows = SHAPES[name]
    runs = {'ours': ours(shape, rows), 'torch eager': theirs(shape, rows, compiled=False)}
    if not args.no_compiled:
      try:
        runs['torch compiled'] = theirs(shape, rows, compiled=True)
        runs['torch compiled'](1)
      except Exception as error:  # no C++ compiler, for one
        print(f'torch.compile: {type(error).__name__}: {str(error).splitlines()[0][:80]}')
        del runs['torch compiled']
    seconds, tokens = race(runs, args.rounds), rows * shape['context_length']
    best, middle = ({k: tokens / f(v) for k, v in seconds.items()} for f in (min, statistics.median))
    for run in runs:
      ratio = f'{best[run] / best["torch eager"]:.2f} ({middle[run] / middle["torch eager"]:.2f})'
      print(f'{name:>8}  {run:>14}  {best[run]:8,.0f} ({middle[run]:,.0f})  {ratio}', flush=True)


if __name__ == '__main__':
  main()
