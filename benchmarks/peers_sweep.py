"""One trial in plain PyTorch, as people write it: loads, trains, evaluates, saves. Started once for each trial.

python benchmarks/peers_sweep.py --family=transformer --learning_rate=1e-3 --seed=0 --steps=100 --folder=OUT
"""

import argparse
import gzip
import json
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from peers_families import VariationalAutoencoder, variational_loss
from peers_torch import Transformer

BATCH, CONTEXT, EVALUATIONS = 8, 64, 20
IMAGES = 128


def bundled():
  return pathlib.Path(__file__).parents[1] / 'aigc_jax' / 'data' / 'bundled'


def text_trial(options, generator):
  """(model, () -> loss of a training batch, () -> loss of a validation batch)."""
  text = gzip.decompress((bundled() / 'moby_dick.txt.gz').read_bytes()).decode('utf-8')
  symbols = {symbol: i for i, symbol in enumerate(sorted(set(text)))}
  tokens = torch.tensor([symbols[symbol] for symbol in text])
  place = int(len(tokens) * 0.9)
  model = Transformer(len(symbols), CONTEXT, layers=2, heads=4, width=64)

  def loss_of(part):
    starts = torch.randint(len(part) - CONTEXT - 1, (BATCH,), generator=generator)
    rows = torch.stack([part[start : start + CONTEXT + 1] for start in starts])
    logits = model(rows[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

  return model, lambda: loss_of(tokens[:place]), lambda: loss_of(tokens[place:])


def image_trial(options, generator):
  file = bundled() / 'fashion_mnist_5k.npz'
  images = torch.tensor(np.load(file)['train_images'].astype(np.float32) / 255)[:, None]
  place = int(len(images) * 0.9)
  model = VariationalAutoencoder()

  def loss_of(part, train):
    rows = part[torch.randint(len(part), (IMAGES,), generator=generator)]
    total, weight, _ = variational_loss(model, {'images': rows, 'mask': torch.ones(IMAGES)}, train)
    return total / weight

  return model, lambda: loss_of(images[:place], True), lambda: loss_of(images[place:], False)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--family', choices=('transformer', 'vae'), required=True)
  parser.add_argument('--learning_rate', type=float, required=True)
  parser.add_argument('--seed', type=int, required=True)
  parser.add_argument('--steps', type=int, required=True)
  parser.add_argument('--folder', type=pathlib.Path, required=True)
  options = parser.parse_args()
  torch.manual_seed(options.seed)
  generator = torch.Generator().manual_seed(options.seed)
  make = text_trial if options.family == 'transformer' else image_trial
  model, training_loss, validation_loss = make(options, generator)
  optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
  for _ in range(options.steps):
    loss = training_loss()
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
  with torch.no_grad():
    found = sum(validation_loss().item() for _ in range(EVALUATIONS)) / EVALUATIONS
  name = f'{options.family}-{options.learning_rate}-{options.seed}'
  torch.save(
    {'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, options.folder / f'{name}.pt'
  )
  (options.folder / f'{name}.json').write_text(json.dumps({'loss': loss.item(), 'validation': found}))


if __name__ == '__main__':
  main()
