"""Final validation metrics of each family beside the same model in PyTorch: same recipe, same batches in order.

  python benchmarks/family_quality.py [--family=gru] [--seeds=0,1,2] [--steps=N] [--source=idx:FOLDER] \
    [--only=ours|torch]

Each begins with its own library's noise, so runs differ by seed; both are evaluated on the whole validation split.
"""

import argparse
import statistics
import tempfile
import time

import torch
from families import ADAM, FAMILIES, as_tensors, whole
from peers_families import make_step

import aigc_jax
from aigc_jax import api, data, tasks


def ours(config, metric):
  """(the last validation metric, seconds of all steps)."""
  with tempfile.TemporaryDirectory() as folder:
    run = aigc_jax.train(config, f'{folder}/run', quiet=True)
    seconds = [row['time/seconds'] for row in run.metrics if 'time/seconds' in row][-1]
    return run.metrics[-1][f'validation/{metric}'], seconds


def theirs(family, config, dataset, seed):
  torch.manual_seed(seed)
  model = family.peer().train()
  step, began = make_step(model, family.loss), time.perf_counter()
  for i in range(config['training']['steps']):
    step(as_tensors(whole(dataset, dataset.train_batch(i))))
  seconds, sums = time.perf_counter() - began, {}
  model.eval()
  with torch.no_grad():
    for batch in dataset.validation_batches():
      total, weight, metrics = family.loss(model, as_tensors(batch), False)
      for name, value in {'loss': total, 'weight': weight, **metrics}.items():
        sums[name] = sums.get(name, 0.0) + float(value)
  return sums[family.metric] / sums['weight'], seconds


def compare(name, seeds, steps, source, sides):
  """Prints a line for each of the sides."""
  family, found = FAMILIES[name], {side: [] for side in sides}
  for seed in seeds:
    training = {'steps': steps or family.steps, 'tensorboard': False, 'log_every': 100}
    training |= dict.fromkeys(('evaluate_every', 'checkpoint_every', 'sample_every'))
    sections = family.sections | {'data': family.sections['data'] | {'seed': seed} | source}
    config = api.read_config(sections | {'optimizer': ADAM, 'training': training, 'seed': seed})
    dataset = data.load(config['data'], form=tasks.form_of(config))
    for side, rows in found.items():
      row = ours(config, family.metric) if side == 'ours' else theirs(family, config, dataset, seed)
      rows.append(row)
  for side, rows in found.items():
    values, seconds = zip(*rows, strict=True)
    each, mean = ', '.join(f'{value:.4f}' for value in values), statistics.mean(values)
    spread = f'{statistics.stdev(values):.4f}' if len(values) > 1 else '-'
    line = f'{each}  mean {mean:.4f}  deviation {spread}  {statistics.mean(seconds):.0f} s'
    print(f'{name:>8}  {side:>6}  {family.metric} {line}', flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--family', choices=FAMILIES, help='default: all')
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--steps', type=int, help='default: those of the family')
  parser.add_argument('--source', help='of images: other data than the bundled')
  parser.add_argument('--only', choices=('ours', 'torch'))
  args = parser.parse_args()
  seeds = [int(seed) for seed in args.seeds.split(',')]
  for name in [args.family] if args.family else FAMILIES:
    sides = [args.only] if args.only else ['ours', 'torch']
    compare(name, seeds, args.steps, {'source': args.source} if args.source else {}, sides)


if __name__ == '__main__':
  main()
