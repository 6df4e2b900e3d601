"""What the pairs of configs/finetune.py are worth: the second run from the first, in several ways, and from nothing.

  python benchmarks/finetuning.py [--pair=classifier] [--way='from nothing'] [--seeds=0,1] [--folder=runs/finetuning]

Each way has the better of two learning rates by the last validation loss of the first seed. From nothing is the same
model, of the same size and tokenizer, as a first run that learned nothing leaves it. First runs that are in the folder
go on, or are used as they are.
"""

import argparse
import pathlib
import statistics
import tempfile
from typing import NamedTuple

import aigc_jax
from aigc_jax import api

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'


class Pair(NamedTuple):
  first: str  # the config of the run to start from
  overrides: dict
  metrics: tuple  # of the validation split


class Way(NamedTuple):
  overrides: dict | None  # None: without what the first run learned
  rates: tuple  # learning rates to choose from


PAIRS = {
  'classifier': Pair('masked_lm.py:song_ci', {}, ('accuracy', 'loss')),
  'poems': Pair('transformer_lm.py', {'data.tokenizer': 'bytes'}, ('bits_per_character', 'loss')),
  'instructions': Pair('transformer_lm.py:song_ci', {}, ('accuracy', 'loss')),
}
WAYS = {
  'all parameters': Way({}, (1e-3, 3e-3)),
  'LoRA of rank 8': Way({'lora.rank': 8, 'lora.alpha': 16.0}, (3e-3, 1e-2)),
  'the head alone': Way({'training.freeze': '^(embed|block)'}, (3e-3, 1e-2)),
  'from nothing': Way(None, (1e-3, 3e-3)),
}
QUIET = {'training.tensorboard': False, 'training.sample_every': None}


def first_run(name, folder, learns):
  """The path of the run to start from, trained where it is not there."""
  pair, path = PAIRS[name], folder / (name if learns else f'{name}_untrained')
  overrides = pair.overrides
  if not learns:
    rates = dict.fromkeys(('optimizer.learning_rate', 'optimizer.adam_learning_rate'), 0.0)
    overrides = overrides | rates | {'training.steps': 1}
  aigc_jax.train(api.read_config(f'{CONFIGS}/{pair.first}', [*overrides.items()]), path, quiet=True)
  return path


def second_run(name, first, way, rate, seed):
  """({metric: last value}, seconds of all steps)."""
  given = {'init_from': str(first), 'optimizer.learning_rate': rate, 'seed': seed, 'data.seed': seed}
  given |= QUIET | {'training.checkpoint_every': None} | (WAYS[way].overrides or {})
  if name == 'classifier' and 'lora.rank' in given:
    given['lora.trained'] = '^head'  # which is new
  config = api.read_config(f'{CONFIGS}/finetune.py:{name}', [*given.items()])
  with tempfile.TemporaryDirectory() as folder:
    run = aigc_jax.train(config, f'{folder}/run', quiet=True)
    seconds = [row['time/seconds'] for row in run.metrics if 'time/seconds' in row][-1]
    values = {metric: run.metrics[-1][f'validation/{metric}'] for metric in PAIRS[name].metrics}
    return values, seconds


def compare(name, ways, seeds, folder):
  """Prints a line for each way."""
  for way in ways:
    first = first_run(name, folder, WAYS[way].overrides is not None)
    if way == 'the head alone' and name != 'classifier':
      continue  # it has none of its own
    tried = {rate: second_run(name, first, way, rate, seeds[0]) for rate in WAYS[way].rates}
    best = min(tried, key=lambda rate: tried[rate][0]['loss'])
    runs = [tried[best], *(second_run(name, first, way, best, seed) for seed in seeds[1:])]
    told = []
    for metric in PAIRS[name].metrics:
      values = [values[metric] for values, _ in runs]
      spread = f' +- {statistics.stdev(values):.4f}' if len(values) > 1 else ''
      told.append(f'{metric} {statistics.mean(values):.4f}{spread}')
    print(f'{name}: {way:16} learning rate {best:g}  {"  ".join(told)}  {runs[0][-1]:.0f} s', flush=True)


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--pair', choices=PAIRS)
  parser.add_argument('--way', choices=WAYS)
  parser.add_argument('--seeds', default='0,1')
  parser.add_argument('--folder', type=pathlib.Path, default=pathlib.Path('runs/finetuning'))
  arguments = parser.parse_args()
  for name in [arguments.pair] if arguments.pair else PAIRS:
    compare(
      name,
      [arguments.way] if arguments.way else WAYS,
      [int(seed) for seed in arguments.seeds.split(',')],
      arguments.folder,
    )


if __name__ == '__main__':
  main()
