"""Elman, GRU, LSTM and Transformer on Moby-Dick by characters, at equal parameters and tokens: one table.

  python experiments/char_lm.py [--seeds=0,1,2] [--steps=1500] [--workdir=runs/char_lm] [--quick]

Every family trains 1,500 steps of 1,024 tokens, all by AdamW but the last, at the learning rate that did better for
it than half and twice of it (with its state carried the GRU keeps its rate). Windows of the validation text begin
without context, but for the GRU that carries its state there too. Typed again, it goes on where it was: each run is a
folder.
"""

import argparse
import pathlib
import statistics

import aigc_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
# the recurrent networks' recipe, for a comparison of models alone
ADAMW = [
  ('optimizer.name', 'adamw'),
  ('optimizer.learning_rate', 2e-3),
  ('optimizer.adam_learning_rate', None),
]
ADAMW += [
  ('optimizer.schedule', 'cosine'),
  ('optimizer.warmup_steps', 50),
  ('optimizer.final_fraction', 0.05),
]
ADAMW += [('optimizer.clip_norm', 1.0)]
FAMILIES = {
  'Elman': ('configs/rnn_lm.py:elman', []),
  'GRU': ('configs/rnn_lm.py:gru', []),
  'LSTM': ('configs/rnn_lm.py:lstm', []),
  'GRU, state carried': ('configs/rnn_lm.py:stateful', []),
  'Transformer': ('configs/transformer_lm.py', ADAMW),
  'Transformer, Muon': ('configs/transformer_lm.py', []),
}
QUICK = [('training.steps', 60), ('training.evaluate_batches', 4), ('training.sample_every', None)]


def measure(config, seed, folder, overrides):
  """Trains, or reads what was trained -> (validation loss in nats, parameters, tokens a second)."""
  run = aigc_jax.train(str(ROOT / config), folder, [('seed', seed), *overrides])
  losses = [row['validation/loss'] for row in run.metrics if 'validation/loss' in row]
  rates = [row['time/tokens_per_second'] for row in run.metrics if 'time/tokens_per_second' in row]
  return losses[-1], run.parameter_count, statistics.median(rates)


def listed(values):
  return ', '.join(map(str, values))


def table(found, seeds):
  """found: {family: [(loss, parameters, rate) of each seed]} -> lines of Markdown."""
  yield f'| model | parameters | validation loss, nats, seeds {listed(seeds)} | mean | deviation | tokens/s |'
  yield '|---|---|---|---|---|---|'
  for family, rows in found.items():
    losses, parameters, rates = zip(*rows, strict=True)
    spread = f'{statistics.stdev(losses):.3f}' if len(losses) > 1 else '-'
    each = listed(f'{loss:.3f}' for loss in losses)
    mean, rate = statistics.mean(losses), statistics.median(rates)
    yield f'| {family} | {parameters[0]:,} | {each} | {mean:.3f} | {spread} | {rate:,.0f} |'


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--steps', type=int, default=1500)
  parser.add_argument('--workdir', default='runs/char_lm')
  parser.add_argument('--quick', action='store_true', help='60 steps, one seed: whether it runs at all')
  options = parser.parse_args()
  seeds = [0] if options.quick else [int(seed) for seed in options.seeds.split(',')]
  overrides = QUICK if options.quick else [('training.steps', options.steps)]
  found = {family: [] for family in FAMILIES}
  for seed in seeds:
    for family, (config, changes) in FAMILIES.items():
      name = family.lower().replace(', ', '_').replace(' ', '_')
      folder = pathlib.Path(options.workdir, f'{"quick_" if options.quick else ""}{name}_{seed}')
      found[family].append(measure(config, seed, folder, changes + overrides))
  print('\n'.join(table(found, seeds)))


if __name__ == '__main__':
  main()
