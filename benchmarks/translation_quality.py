"""English-Chinese: BLEU and chrF of the encoder-decoder beside the same model in PyTorch, same recipe, same batches.

  python benchmarks/translation_quality.py [--seeds=0,1,2] [--steps=3000] [--only=ours|torch]

First both are shown to be one function. Each then begins with its own library's noise, trains on the same batches in
order, and writes the validation pairs greedily from its last parameters.
"""

import argparse
import math
import statistics
import tempfile
import time

import jax
import numpy as np
import torch
import torch.nn.functional as F
from peers_translation import EncoderDecoder, load_ours

from aigc_jax import api, data, models, tasks
from aigc_jax.evaluation import scores

CONFIG = 'configs/translation.py'


def config_of(seed, steps):
  overrides = [
    ('seed', seed),
    ('data.seed', seed),
    ('training.steps', steps),
    ('training.tensorboard', False),
  ]
  overrides += [(f'training.{name}', None) for name in ('checkpoint_every', 'sample_every')]
  overrides += [('training.evaluate_every', steps)]
  return api.read_config(CONFIG, overrides)


def judged(dataset, predictions):
  found = scores.score(['bleu', 'chrf'], predictions, [target for _, target in dataset.pairs])
  return [score.value for score in found]


def ours(config, dataset):
  """[BLEU, chrF, validation loss, seconds]."""
  with tempfile.TemporaryDirectory() as folder:
    run = api.train(config, f'{folder}/run', quiet=True)
    run = api.load_run(run.path, 'latest')
    seconds = [row['time/seconds'] for row in run.metrics if 'time/seconds' in row][-1]
    made = run.generate([source for source, _ in dataset.pairs])
    loss = [row['validation/loss'] for row in run.metrics if 'validation/loss' in row][-1]
    return [*judged(dataset, [completion.text for completion in made]), loss, seconds]


def tensors(batch):
  kept = {name: torch.tensor(array) for name, array in batch.items()}
  return {name: array.long() if array.dtype == torch.int32 else array for name, array in kept.items()}


def nats_of(model, batch, smoothing):
  logits = model(batch['sources'], batch['lengths'], batch['inputs'])
  nats = F.cross_entropy(
    logits.flatten(0, 1), batch['targets'].flatten(), reduction='none', label_smoothing=smoothing
  )
  return (nats * batch['mask'].flatten()).sum(), batch['mask'].sum()


def theirs(config, dataset, seed):
  """The same for PyTorch."""
  torch.manual_seed(seed)
  model = EncoderDecoder(dataset.tokenizer.vocabulary_size, config['model']['init_scale'])
  rule, steps = config['optimizer'], config['training']['steps']
  parts = [[p for p in model.parameters() if (p.ndim >= 2) == decays] for decays in (True, False)]
  groups = [
    {'params': parts[0], 'weight_decay': rule['weight_decay']},
    {'params': parts[1], 'weight_decay': 0.0},
  ]
  optimizer = torch.optim.AdamW(
    groups, rule['learning_rate'], (rule['beta1'], rule['beta2']), rule['epsilon']
  )
  warmup, began = rule['warmup_steps'], time.perf_counter()
  for step in range(steps):
    progress = min(max((step - warmup) / (steps - warmup), 0), 1)
    part = (step + 1) / (warmup + 1) if step < warmup else 0.5 * (1 + math.cos(math.pi * progress))
    for group in optimizer.param_groups:
      group['lr'] = rule['learning_rate'] * part
    total, weight = nats_of(model, tensors(dataset.train_batch(step)), config['task']['label_smoothing'])
    optimizer.zero_grad()
    (total / weight).backward()
    if rule['clip_norm'] is not None:
      torch.nn.utils.clip_grad_norm_(model.parameters(), rule['clip_norm'])
    optimizer.step()
  seconds = time.perf_counter() - began
  model.eval()
  with torch.no_grad():
    sums = [nats_of(model, tensors(batch), 0.0) for batch in dataset.validation_batches()]
  loss = float(sum(total for total, _ in sums) / sum(weight for _, weight in sums))
  return [*judged(dataset, translated(model, dataset)), loss, seconds]


def translated(model, dataset):
  """The predictions of the validation pairs, in their order, from the sources as `pairs` cuts them."""
  known, end, limit = dataset.tokenizer, dataset.tokenizer.end_of_text, dataset.facts['source_length']
  found = []
  for source, _ in dataset.pairs:
    tokens = torch.tensor([[*known.encode(source)[: limit - 1].tolist(), end]])
    made = model.greedy(tokens, torch.tensor([tokens.shape[1]]), end, dataset.facts['target_length'])[
      0
    ].tolist()
    found.append(known.decode(made[: made.index(end)] if end in made else made))
  return found


def check_same_function(config, dataset):
  """Our parameters in both: equal logits on a batch. Raises AssertionError."""
  module = models.build(tasks.complete(config, dataset)['model'])
  batch = dataset.train_batch(0)
  inputs = batch['sources'], batch['inputs']
  params = module.init(jax.random.key(0), *inputs, lengths=batch['lengths'])['params']
  mine = module.apply({'params': params}, *inputs, lengths=batch['lengths'])
  peer = EncoderDecoder(dataset.tokenizer.vocabulary_size, config['model']['init_scale']).eval()
  load_ours(peer, params)
  with torch.no_grad():
    found = peer(*(tensors(batch)[name] for name in ('sources', 'lengths', 'inputs'))).numpy()
  np.testing.assert_allclose(mine, found, rtol=1e-3, atol=1e-4 * abs(found).max())
  count = lambda leaves: sum(leaf.size for leaf in leaves)
  same = count(jax.tree.leaves(params)) == sum(parameter.numel() for parameter in peer.parameters())
  assert same, 'the peer has another number of parameters'
  print(f'one function: logits differ by {abs(mine - found).max():.1e} at most')


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--steps', type=int, default=3000)
  parser.add_argument('--only', choices=('ours', 'torch'))
  args = parser.parse_args()
  sides = [args.only] if args.only else ['ours', 'torch']
  found, first = {side: [] for side in sides}, True
  for seed in map(int, args.seeds.split(',')):
    config = config_of(seed, args.steps)
    dataset = data.load(config['data'], form='pairs')
    if first:
      check_same_function(config, dataset)
      print(
        '| side | seed | BLEU | chrF | validation loss | seconds |\n| --- | --- | --- | --- | --- | --- |'
      )
      first = False
    for side in sides:
      row = ours(config, dataset) if side == 'ours' else theirs(config, dataset, seed)
      found[side].append(row)
      print(f'| {side} | {seed} | {row[0]:.2f} | {row[1]:.2f} | {row[2]:.4f} | {row[3]:.0f} |', flush=True)
  for side, rows in found.items():
    cells = [
      f'{statistics.mean(column):.2f} ± {statistics.stdev(column):.2f}' for column in zip(*rows, strict=True)
    ]
    print(f'| {side} | mean | {" | ".join(cells)} |')


if __name__ == '__main__':
  main()
