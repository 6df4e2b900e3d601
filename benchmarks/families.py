"""Each family as a config of ours and the same model in PyTorch, on the same batches: for the two benchmarks."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import peers_families as peers
import torch

ADAM = {'name': 'adam', 'learning_rate': 1e-3, 'schedule': 'constant', 'clip_norm': None, 'beta2': 0.999}
RESNET = (16, 32, 64)


class Family(NamedTuple):
  sections: dict  # of the config: task, model, data
  peer: Callable  # () -> torch module
  loss: Callable  # of it
  metric: str  # of the validation split, to compare
  unit: str
  steps: int  # of the comparison


def recurrent(cell):
  return Family(
    {
      'task': {'name': 'language'},
      'model': {'name': 'rnn', 'cell': cell, 'width': 256, 'forget_bias': 0.0},
      'data': {'source': 'bundled:moby_dick', 'batch_size': 32, 'sequence_length': 128},
    },
    partial(peers.Recurrent, cell, 83, 256),
    peers.language_loss,
    'loss',
    'tokens',
    400,
  )


def variational():
  return Family(
    {
      'task': {'name': 'autoencoding'},
      'model': {'name': 'autoencoder', 'widths': (400,), 'latent_width': 20},
      'data': {'source': 'bundled:fashion_mnist_5k', 'batch_size': 128, 'binarization': 'dynamic'},
    },
    peers.VariationalAutoencoder,
    peers.variational_loss,
    'elbo',
    'images',
    2000,
  )


def classifier(model, peer):
  return Family(
    {
      'task': {'name': 'classification'},
      'model': model,
      'data': {'source': 'bundled:fashion_mnist_5k', 'batch_size': 128},
    },
    peer,
    peers.classification_loss,
    'accuracy',
    'images',
    400,
  )


FAMILIES = {
  'elman': recurrent('elman'),
  'gru': recurrent('gru'),
  'lstm': recurrent('lstm'),
  'vae': variational(),
  'mlp': classifier({'name': 'mlp', 'widths': (128, 64)}, peers.mlp),
  'cnn': classifier({'name': 'cnn'}, peers.cnn),
  'resnet': classifier({'name': 'resnet', 'channels': RESNET}, partial(peers.resnet, RESNET)),
}


def whole(dataset, batch):
  """A training batch of a data set that lives on the device, gathered here."""
  if 'rows' not in batch:
    return batch
  return {'mask': batch['mask']} | {name: array[batch['rows']] for name, array in dataset.resident.items()}


def as_tensors(batch):
  """A batch of ours as PyTorch wants it."""
  made = {'mask': torch.tensor(np.asarray(batch['mask']))}
  if 'images' in batch:
    made['images'] = torch.tensor(batch['images']).permute(0, 3, 1, 2).float().contiguous() / 255
  names = [name for name in ('inputs', 'targets', 'labels') if name in batch]
  return made | {name: torch.tensor(batch[name], dtype=torch.int64) for name in names}
