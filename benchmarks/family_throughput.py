"""Training examples per second of our step against the same model in eager PyTorch, side by side on this CPU.

  python benchmarks/family_throughput.py [--model=gru] [--rounds=8]

Ours is the step that `aigc train` runs. The two take turns in bursts of half a second; the fastest and the median
burst are printed. Compilation is not timed. A model is an entry of MODELS: a function that gives (ours, theirs, unit,
units of a step), the first two being functions (steps) that take as many steps and return the loss.
"""

import argparse
import statistics

import jax
import numpy as np
import torch
from peers_torch import make_recurrent_step
from training_throughput import race

from aigc_jax import api, memory, tasks
from aigc_jax import config as configs
from aigc_jax.training import parallel


def make_ours(sections, batch):
  """A function (steps) that takes as many of the step that `aigc train` runs with a config on one batch."""
  config = configs.resolve(sections, api.schemas())
  program = parallel.make_parallel(config, tasks.build, jax.devices()[:1])
  floats, batch = program.put_floats(configs.floats_of(config)), program.put_batch(batch)
  state = program.init(floats, jax.random.key(0), batch)

  def run(steps):
    nonlocal state
    for _ in range(steps):
      state, metrics = program.step(floats, state, batch)
    return float(metrics['loss'])

  return run


ADAM = {
  'name': 'adam',
  'learning_rate': 1e-3,
  'schedule': 'constant',
  'weight_decay': None,
  'clip_norm': None,
}


def recurrent(cell, vocabulary_size=83, width=256, rows=32, time=128):
  """A language model: token vectors, one recurrent layer, logits."""
  tokens = np.random.default_rng(0).integers(0, vocabulary_size, (rows, time + 1), dtype=np.int32)
  inputs, targets = tokens[:, :-1], tokens[:, 1:]
  sections = {
    'task': {'name': 'language'},
    'model': {'name': 'rnn', 'cell': cell, 'width': width, 'vocabulary_size': vocabulary_size},
    'data': {'batch_size': rows, 'sequence_length': time},
    'optimizer': ADAM,
  }
  ours = make_ours(
    sections, {'inputs': inputs, 'targets': targets, 'mask': np.ones(inputs.shape, np.float32)}
  )
  step = make_recurrent_step(cell, vocabulary_size, width)
  pair = [torch.tensor(a, dtype=torch.int64) for a in (inputs, targets)]
  return ours, lambda steps: [step(*pair) for _ in range(steps)][-1], 'tokens', inputs.size


MODELS = {
  'gru': lambda: recurrent('gru'),
  'lstm': lambda: recurrent('lstm'),
  'elman': lambda: recurrent('elman'),
}


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--model', choices=MODELS, help='default: all')
  parser.add_argument('--rounds', type=int, default=8)
  args = parser.parse_args()
  memory.keep_freed_memory()
  print('per second, fastest burst (median); ratio to eager PyTorch')
  for name in [args.model] if args.model else MODELS:
    ours, theirs, unit, amount = MODELS[name]()
    seconds = race({'ours': ours, 'torch eager': theirs}, args.rounds)
    best, middle = ({k: amount / f(v) for k, v in seconds.items()} for f in (min, statistics.median))
    for run in seconds:
      ratio = f'{best[run] / best["torch eager"]:.2f} ({middle[run] / middle["torch eager"]:.2f})'
      print(f'{name:>8}  {run:>12}  {best[run]:8,.0f} ({middle[run]:,.0f}) {unit}  {ratio}', flush=True)


if __name__ == '__main__':
  main()
