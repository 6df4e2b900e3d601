"""Each family as a config of ours and the same model in PyTorch, on the same batches: for the two benchmarks."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import peers_autoencoders
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


def plain_autoencoder():
  return Family(
    {
      'task': {'name': 'autoencoding'},
      'model': {'name': 'autoencoder', 'posterior': 'none', 'likelihood': 'squared_error'},
      'data': {'source': 'bundled:fashion_mnist_5k', 'batch_size': 128},
    },
    peers_autoencoders.PlainAutoencoder,
    peers_autoencoders.squared_error_loss,
    'reconstruction',
    'images',
    2000,
  )


def quantized_autoencoder():
  model = {'name': 'vq_autoencoder', 'likelihood': 'squared_error', 'widths': (32, 64), 'residual_blocks': 1}
  return Family(
    {
      'task': {'name': 'autoencoding'},
      'model': model | {'code_width': 32, 'codebook_size': 128},
      'data': {'source': 'bundled:fashion_mnist_5k', 'batch_size': 128},
    },
    peers_autoencoders.QuantizedAutoencoder,
    peers_autoencoders.quantized_loss,
    'reconstruction',
    'images',
    1500,
  )


def variational(beta=1.0, samples=None):
  """samples: of the importance-weighted bound, which is then compared."""
  return Family(
    {
      'task': {'name': 'autoencoding', 'beta': beta, 'importance_samples': samples},
      'model': {'name': 'autoencoder', 'widths': (400,), 'latent_width': 20},
      'data': {'source': 'bundled:fashion_mnist_5k', 'batch_size': 128, 'binarization': 'dynamic'},
    },
    peers.VariationalAutoencoder,
    partial(peers.variational_loss, beta=beta, samples=samples),
    'elbo' if samples is None else 'importance_bound',
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
  'ae': plain_autoencoder(),
  'vae': variational(),
  'vae_bound': variational(samples=256),
  'beta_vae': variational(beta=4.0),
  'vq': quantized_autoencoder(),
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
