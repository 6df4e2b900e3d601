"""Masked images: crops are hidden, and an encoder learns to give their pixels back, without labels.

Pathak et al. 2016 ("Context Encoders"): what an image's features say of it is all that its pixels are told from. As in
He et al. 2022 (masked autoencoders), squared errors of hidden pixels alone count. What stands where crops are hidden is
learned.
"""

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import models
from aigc_jax.config import Positive, Range, UnitInterval
from aigc_jax.errors import UsageError
from aigc_jax.models.image_heads import PixelHead
from aigc_jax.task import Context, Task
from aigc_jax.tasks import representations
from aigc_jax.tasks.augmentation import random_flip, random_resized_crop
from aigc_jax.tasks.classification import ENCODERS
from aigc_jax.tasks.images import as_floats, gather
from aigc_jax.tasks.pictures import grid

HIGHER_IS_BETTER = representations.HIGHER_IS_BETTER  # metrics
MODELS = ENCODERS
SHOWN = 16  # images that are shown


@dataclasses.dataclass(frozen=True)
class MaskedImagesConfig:
  crop_size: Annotated[int, Positive] = 4  # pixels of each side of what is hidden or seen
  hidden: Annotated[float, Range('above 0, up to 1', above=0, most=1)] = 0.6  # the part of crops that is
  # of what gives pixels back: units that all of an image passes through
  hidden_units: Annotated[int, Positive] = 128
  # of what gives pixels back, from the image inwards
  channels: Annotated[tuple[int, ...], Positive] = (32, 64)
  crop_area: Annotated[float, UnitInterval] | None = (
    None  # images are cut and stretched as in contrastive learning
  )
  flip: bool = True  # every second one is mirrored left to right
  # evaluations: labelled images of each class that a linear probe learns from
  labels_per_class: Annotated[int, Positive] = 10
  neighbours: Annotated[int, Positive] = 5  # of each validation image that vote on its class


class Parts(NamedTuple):
  """What the functions of the task share."""

  task: dict
  model: object  # the encoder, a Linen module
  head: PixelHead
  classes: int


def complete(config, dataset):
  """Fills in what the data decides: the images' shape and the number of classes. Raises UsageError."""
  model, size = representations.complete(config, dataset), config['task']['crop_size']
  least = min(model['image_shape'][:2])
  if size > least:
    raise UsageError(
      f'config.task.crop_size: {size} pixels are more than the images have; use {least} or less'
    )
  if not config['task']['channels']:
    raise UsageError('config.task.channels: is empty; it takes those of one layer or more, as in 32,64')
  return config | {'model': model}


def build(config):
  """A Task from a resolved config whose floats may be traced. Batches are those of image data."""
  task, dtype = config['task'], jnp.dtype(config['training']['precision'])
  head = PixelHead(
    tuple(config['model']['image_shape']), task['hidden_units'], tuple(task['channels']), dtype
  )
  parts = Parts(task, models.build(config['model'], dtype), head, config['model']['classes'])
  rebuild = jax.jit(partial(rebuilt, parts))  # compiled once, at the first picture
  return Task(
    init=partial(init, parts),
    loss=partial(loss, parts),
    collect=partial(collect, parts),
    evaluate=partial(evaluate, parts),
    show=partial(show, parts, rebuild, representations.mapper(parts.model)),
    unit='pixels',
    loss_unit='squared error',
    higher_is_better=HIGHER_IS_BETTER,
  )


def init(parts, key, batch):
  encoder_key, head_key = jax.random.split(key)
  params, extra, features = representations.init(
    parts.model, encoder_key, batch, parts.task['labels_per_class'], parts.classes
  )
  size, channels = parts.task['crop_size'], parts.head.image_shape[2]
  blank = jnp.full((size, size, channels), 0.5)
  head = parts.head.init(head_key, features)['params']
  return params | {'pixel_head': head, 'blank': blank}, extra


def collect(parts, params, extra, batch, context):
  """Changes the images at random, and draws which crops are hidden: 'hidden' float32 [batch, height, width]."""
  del params
  batch, task = gather(batch), parts.task
  crop_key, flip_key, hide_key = jax.random.split(context.key, 3)
  images = batch['images']
  if task['crop_area'] is not None:
    images = random_resized_crop(crop_key, images, task['crop_area'])
  if task['flip']:
    images = random_flip(flip_key, images)
  return extra, {'images': images, 'hidden': hiding(task, hide_key, images), 'mask': batch['mask']}


def hiding(task, key, images):
  """Which pixels are hidden, float32 [batch, height, width]: whole crops, each with the same chance."""
  batch, height, width, _ = images.shape
  size = task['crop_size']
  grid = -(-height // size), -(-width // size)
  hidden = jax.random.uniform(key, (batch, *grid)) < task['hidden']
  return hidden.repeat(size, 1).repeat(size, 2)[:, :height, :width].astype(jnp.float32)


def given_back(parts, params, extra, batch, context):
  """(the images as the head gives them back [batch, height, width, channels] float32, extra)."""
  images, hidden = as_floats(batch['images']), batch['hidden'][..., None]
  _, height, width, _ = images.shape
  size = parts.task['crop_size']
  blank = jnp.tile(params['blank'], (-(-height // size), -(-width // size), 1))[:height, :width]
  seen = images * (1 - hidden) + blank * hidden
  features, extra = representations.encode(parts.model, params, extra, seen, batch['mask'], context)
  return parts.head.apply({'params': params['pixel_head']}, features).astype(jnp.float32), extra


def loss(parts, params, extra, batch, context):
  """Squared errors of hidden pixels; they are what the weight counts."""
  found, extra = given_back(parts, params, extra, batch, context)
  counted = batch['hidden'] * batch['mask'][:, None, None]  # [batch, height, width]
  error = jnp.square(found - as_floats(batch['images'])).mean(-1)
  return (error * counted).sum(), (counted.sum(), extra, {})


def evaluate(parts, params, extra, batch, context):
  """The loss with crops hidden that are the same at each evaluation, and what the features tell of the labels."""
  hidden = batch | {'hidden': hiding(parts.task, context.key, batch['images'])}
  total, (weight, _, _) = loss(parts, params, extra, hidden, context)
  known = representations.measures(parts.model, params, extra, batch, parts.classes, parts.task['neighbours'])
  return {'loss': (total, weight)} | known


def rebuilt(parts, params, extra, images, key):
  """Images -> (what is seen of them, hidden crops grey; the same with these given back), float32 in [0, 1]."""
  batch = {'images': images, 'hidden': hiding(parts.task, key, images), 'mask': jnp.ones(len(images))}
  found, _ = given_back(parts, params, extra, batch, Context(key, jnp.int32(0), False))
  images, hidden = as_floats(images), batch['hidden'][..., None]
  return images * (1 - hidden) + 0.5 * hidden, images * (1 - hidden) + jnp.clip(found, 0, 1) * hidden


def show(parts, rebuild, map_of, params, extra, dataset, key):
  """'reconstructions.png': rows of what is seen, what is given back, and the images; 'embeddings.png': their map."""
  batch = next(dataset.validation_batches())
  images = batch['images'][: min(SHOWN, int(batch['mask'].sum()))]
  rows = np.stack([*map(np.asarray, rebuild(params, extra, images, key)), as_floats(images)])
  shown = {'reconstructions.png': grid(rows.reshape(-1, *rows.shape[2:]), len(images))}
  return shown | {'embeddings.png': map_of(params, extra, dataset)}
