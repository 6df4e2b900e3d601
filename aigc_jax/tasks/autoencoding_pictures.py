"""What people see of an autoencoder: reconstructions, samples, ways between images, and a map of a latent plane."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.errors import UsageError
from aigc_jax.tasks.images import as_floats
from aigc_jax.tasks.pictures import grid

STEPS = 10  # of a way between two images
MAP_SIDE = 20  # images along a side of the map


class Pictures(NamedTuple):
  """Compiled once for all pictures of a task; images are [n, height, width, channels] in [0, 1]."""

  reconstruct: Callable  # params, extra, images, labels -> images
  latents: Callable  # params, images, labels -> their codes' means, [n, ...]
  decode: Callable  # params, latents, labels -> images
  model: dict  # config.model
  number: int  # of images to show


def show(pictures, params, extra, dataset, key):
  """{file name: image} of the first validation images and of what the prior gives."""
  batch = next(dataset.validation_batches())
  number = min(pictures.number, int(batch['mask'].sum()))
  images, labels = jnp.asarray(as_floats(batch['images'][:number])), jnp.asarray(batch['labels'][:number])
  rebuilt = pictures.reconstruct(params, extra, images, labels)
  pairs = [
    part for first in range(0, number, 8) for part in (images[first : first + 8], rebuilt[first : first + 8])
  ]
  whole = [np.pad(part, ((0, min(8, number) - len(part)), (0, 0), (0, 0), (0, 0))) for part in pairs]
  made = {'reconstructions.png': grid(np.concatenate(whole), min(8, number))}
  if 'posterior' in pictures.model and number > 1:
    made['interpolation.png'] = ways(pictures, params, images, labels)
  if pictures.model.get('posterior') == 'gaussian':
    made['samples.png'] = draw(pictures, params, extra, None, key, pictures.number)
    if pictures.model['latent_width'] == 2:
      made['latent_map.png'] = latent_map(pictures, params)
  return made


def ways(pictures, params, images, labels):
  """Rows of straight lines in the latent space from one image to the next; the class is the first one's."""
  latents = np.asarray(pictures.latents(params, images, labels))
  rows = min(4, len(latents) // 2)
  share = np.linspace(0, 1, STEPS, dtype=np.float32)[None, :, None]
  first, last = latents[0 : 2 * rows : 2, None], latents[1 : 2 * rows : 2, None]  # [rows, 1, latent_width]
  between = ((1 - share) * first + share * last).reshape(rows * STEPS, -1)
  return grid(pictures.decode(params, between, np.repeat(labels[0 : 2 * rows : 2], STEPS)), STEPS)


def latent_map(pictures, params):
  """The plane of two latents, decoded where the prior's quantiles lie (Kingma & Welling 2014, figure 4)."""
  at = np.asarray(jax.scipy.special.ndtri((jnp.arange(MAP_SIDE) + 0.5) / MAP_SIDE))
  plane = np.stack(np.meshgrid(at, -at), -1).reshape(-1, 2)  # the second latent grows upwards
  return grid(pictures.decode(params, plane, np.zeros(len(plane), np.int32)), MAP_SIDE, padding=0)


def draw(pictures, params, extra, data, key, num, label=None, interpolate=False):
  """A picture of `num` images that the prior of a variational autoencoder gives.

  Args:
    label: the class of all of them; None: where the model is conditional, each class in turn.
    interpolate: one row along a great circle between two draws (White 2016), which keeps their distance from 0.

  Raises: UsageError, where the run knows no such class.
  """
  del extra, data
  model = pictures.model
  check_label(model, label)
  classes = model['classes'] if model['conditional'] else None
  labels = np.arange(num) % (classes or 1) if label is None else np.full(num, label)
  noise = jax.random.normal(key, (2 if interpolate else num, model['latent_width']))
  columns = math.ceil(math.sqrt(num))
  if classes and label is None and not interpolate:
    columns = min(classes, num)
  if interpolate:
    noise, columns, labels = great_circle(*np.asarray(noise), num), num, np.full(num, label or 0)
  return grid(pictures.decode(params, noise, labels.astype(np.int32)), columns)


def check_label(model, label):
  if label is None:
    return
  if not model['conditional']:
    raise UsageError(f'label {label}: this run knows no classes; train with --config.model.conditional=true')
  if not 0 <= label < model['classes']:
    raise UsageError(f'label {label}: the classes are 0 to {model["classes"] - 1}')


def great_circle(first, last, number):
  """Points [number, width] from one vector to another [width], at even angles."""
  lengths = np.linalg.norm(first), np.linalg.norm(last)
  angle = np.arccos(np.clip(first @ last / (lengths[0] * lengths[1]), -1, 1))
  share = np.linspace(0, 1, number)[:, None]
  if np.sin(angle) < 1e-4:  # of one direction, or of opposite ones, as every two points of a line are
    return ((1 - share) * first + share * last).astype(np.float32)
  parts = np.sin((1 - share) * angle) * first + np.sin(share * angle) * last
  return (parts / np.sin(angle)).astype(np.float32)
