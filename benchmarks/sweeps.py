"""Wall time of a sweep of learning rates and seeds: as lanes, as workers, one after another, and as PyTorch scripts.

  python benchmarks/sweeps.py [--family=transformer|vae] [--steps=100] [--ways=lanes,workers,alone,torch]

All trials train, evaluate and save; each way begins with an empty cache of compiled programs. `workers`: two processes
at a time, a trial each; `alone`: one process at a time; `torch`: the same models in a plain script that is started for
each trial, peers_sweep.py. Data is what this package bundles, so nothing is downloaded.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import time

RATES, SEEDS = (3e-4, 6e-4, 1e-3, 2e-3, 3e-3, 6e-3, 1e-2, 2e-2), 4
SIZES = {  # what differs from the config file
  'transformer': {'model.layers': 2, 'model.heads': 4, 'model.width': 64, 'data.sequence_length': 64},
  'vae': {},
}
CONFIGS = {'transformer': 'configs/transformer_lm.py', 'vae': 'configs/autoencoder.py:vae'}
ROOT = pathlib.Path(__file__).parents[1]


def sweep_command(family, steps, folder, *options):
  fields = SIZES[family] | {'training.steps': steps, 'training.evaluate_every': steps}
  fields |= {
    'training.checkpoint_every': steps,
    'training.sample_every': 'none',
    'training.evaluate_batches': 20,
  }
  space = f'optimizer.learning_rate={",".join(map(str, RATES))};seed=0..{SEEDS - 1}'
  settings = [f'--config.{name}={value}' for name, value in fields.items()]
  config = f'--config={ROOT / CONFIGS[family]}'
  return [
    *(sys.executable, '-m', 'aigc_jax.cli', 'sweep', config, f'--sweep={space}'),
    *(f'--workdir={folder}', *settings, *options),
  ]


def by_torch(family, steps, folder):
  """Starts the plain script for each trial."""
  script = ROOT / 'benchmarks' / 'peers_sweep.py'
  for rate in RATES:
    for seed in range(SEEDS):
      arguments = [f'--family={family}', f'--learning_rate={rate}', f'--seed={seed}', f'--steps={steps}']
      subprocess.run(
        [sys.executable, script, *arguments, f'--folder={folder}'], check=True, capture_output=True
      )


def seconds_of(way, family, steps):
  options = {'lanes': [], 'workers': ['--lanes=1', '--jobs=2'], 'alone': ['--lanes=1', '--jobs=1']}
  with tempfile.TemporaryDirectory() as place:
    place, began = pathlib.Path(place), time.perf_counter()
    if way == 'torch':
      by_torch(family, steps, place)
    else:
      environment = os.environ | {'JAX_COMPILATION_CACHE_DIR': str(place / 'cache')}
      command = sweep_command(family, steps, place / 'sweep', *options[way])
      subprocess.run(command, check=True, env=environment, capture_output=True)
    return time.perf_counter() - began


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--family', choices=CONFIGS, default='transformer')
  parser.add_argument('--steps', type=int, default=100)
  parser.add_argument('--ways', default='lanes,workers,alone,torch')
  options = parser.parse_args()
  print(f'{len(RATES) * SEEDS} trials of {options.steps} steps, {options.family}')
  first = None
  for way in options.ways.split(','):
    seconds = seconds_of(way, options.family, options.steps)
    first = first or seconds
    print(f'{way:<10}{seconds:8.1f} s   {seconds / first:5.2f} times the first', flush=True)


if __name__ == '__main__':
  main()
