"""Training examples per second of our step against the same model in eager PyTorch, side by side on this CPU.

  python benchmarks/family_throughput.py [--family=gru] [--rounds=8]

Ours is the step that `aigc train` runs, gathering and binarizing included. PyTorch's convolutions are run in both of
its layouts of memory. They take turns in bursts of half a second; the fastest and the median burst are printed, and
ratios to the faster layout. Compilation is not timed.
"""

import argparse
import statistics

import jax
import torch
from families import ADAM, FAMILIES, as_tensors, whole
from peers_families import make_step
from training_throughput import race

from aigc_jax import api, data, memory, tasks
from aigc_jax.config import floats_of
from aigc_jax.training import parallel


def ours(family):
  """(a function (steps) that takes as many of the step that `aigc train` runs, its batch on the host)."""
  config = api.read_config(family.sections | {'optimizer': ADAM})
  dataset = data.load(config['data'], form=tasks.form_of(config))
  config = tasks.complete(config, dataset)
  program = parallel.make_parallel(config, tasks.build, jax.devices()[:1])
  floats, whole_set = program.put_floats(floats_of(config)), program.put_resident(dataset.resident)
  batch = program.put_batch(dataset.train_batch(0)) | whole_set
  state = program.init(floats, jax.random.key(0), batch)

  def run(steps):
    nonlocal state
    for _ in range(steps):
      state, metrics = program.step(floats, state, batch)
    return float(metrics['loss'])

  return run, whole(dataset, dataset.train_batch(0))


def theirs(family, batch, channels_last):
  torch.manual_seed(0)
  model, batch = family.peer(), as_tensors(batch)
  if channels_last:
    model = model.to(memory_format=torch.channels_last)
    batch['images'] = batch['images'].contiguous(memory_format=torch.channels_last)
  step = make_step(model, family.loss)
  return lambda steps: [step(batch) for _ in range(steps)][-1]


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--family', choices=FAMILIES, help='default: all')
  parser.add_argument('--rounds', type=int, default=8)
  args = parser.parse_args()
  memory.keep_freed_memory()
  print('per second, fastest burst (median); ratio to eager PyTorch')
  for name in [args.family] if args.family else FAMILIES:
    family = FAMILIES[name]
    run, batch = ours(family)
    runs = {'ours': run, 'torch': theirs(family, batch, False)}
    if name in ('cnn', 'resnet'):
      runs['torch channels last'] = theirs(family, batch, True)
    seconds = race(runs, args.rounds)
    amount = batch['inputs'].size if 'inputs' in batch else len(batch['mask'])
    best, middle = ({k: amount / f(v) for k, v in seconds.items()} for f in (min, statistics.median))
    for one in runs:
      ratio, typical = (at[one] / max(rate for k, rate in at.items() if k != 'ours') for at in (best, middle))
      figures = f'{best[one]:8,.0f} ({middle[one]:,.0f}) {family.unit}  {ratio:.2f} ({typical:.2f})'
      print(f'{name:>8}  {one:>20}  {figures}', flush=True)


if __name__ == '__main__':
  main()
