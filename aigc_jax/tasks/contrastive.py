"""Contrastive learning: two views of an image are told from those of all others, without labels (SimCLR).

Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations". Views are cut, mirrored and
changed inside the compiled step.
"""

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import models
from aigc_jax.config import NonNegative, Positive, UnitInterval
from aigc_jax.errors import UsageError
from aigc_jax.models.image_heads import Projection
from aigc_jax.task import Task
from aigc_jax.tasks import representations
from aigc_jax.tasks.augmentation import (
  random_blur,
  random_colours,
  random_flip,
  random_jitter,
  random_resized_crop,
)
from aigc_jax.tasks.classification import ENCODERS
from aigc_jax.tasks.images import as_floats, gather
from aigc_jax.tasks.losses import info_nce
from aigc_jax.tasks.pictures import grid

HIGHER_IS_BETTER = ('contrast_accuracy', *representations.HIGHER_IS_BETTER)  # metrics
MODELS = ENCODERS
SHOWN = 16  # images whose views are shown


@dataclasses.dataclass(frozen=True)
class ContrastiveConfig:
  temperature: Annotated[float, Positive] = 0.5  # that similarities are divided by
  projection_widths: Annotated[tuple[int, ...], Positive] = (128, 64)  # of the layers behind the features
  crop_area: Annotated[float, UnitInterval] | None = (
    0.2  # the least part of an image that a view shows; None: no cut
  )
  flip: bool = True  # every second one is mirrored left to right
  jitter: Annotated[float, NonNegative] | None = (
    0.4  # brightness and contrast, and saturation and hue of colours
  )
  blur: Annotated[float, NonNegative] | None = None  # every second one, by up to as many pixels
  # evaluations: labelled images of each class that a linear probe learns from
  labels_per_class: Annotated[int, Positive] = 10
  neighbours: Annotated[int, Positive] = 5  # of each validation image that vote on its class


class Parts(NamedTuple):
  """What the functions of the task share."""

  task: dict
  model: object  # the encoder, a Linen module
  projection: Projection
  classes: int


def complete(config, dataset):
  """Fills in what the data decides: the images' shape and the number of classes. Raises UsageError."""
  size = config['data']['batch_size']
  if size < 2:
    raise UsageError(
      f'config.data.batch_size: {size} image has no other to be told from; use 2 or more, and rather hundreds'
    )
  if not config['task']['projection_widths']:
    raise UsageError('config.task.projection_widths: is empty; it takes one width or more, as in 128,64')
  return config | {'model': representations.complete(config, dataset)}


def build(config):
  """A Task from a resolved config whose floats may be traced. Batches are those of image data."""
  dtype = jnp.dtype(config['training']['precision'])
  projection = Projection(tuple(config['task']['projection_widths']), dtype)
  parts = Parts(config['task'], models.build(config['model'], dtype), projection, config['model']['classes'])
  return Task(
    init=partial(init, parts),
    loss=partial(loss, parts),
    collect=partial(collect, parts),
    evaluate=partial(evaluate, parts),
    show=partial(show, parts, representations.mapper(parts.model)),
    whole_batch=True,
    unit='images',
    higher_is_better=HIGHER_IS_BETTER,
  )


def init(parts, key, batch):
  encoder_key, projection_key = jax.random.split(key)
  params, extra, features = representations.init(
    parts.model, encoder_key, batch, parts.task['labels_per_class'], parts.classes
  )
  projection = parts.projection.init(projection_key, features)['params']
  return params | {'projection': projection}, extra


def view(task, key, images):
  """One view of each image, float32 [batch, height, width, channels]."""
  crop_key, flip_key, jitter_key, colour_key, blur_key = jax.random.split(key, 5)
  if task['crop_area'] is not None:
    images = random_resized_crop(crop_key, images, task['crop_area'])
  if task['flip']:
    images = random_flip(flip_key, images)
  if task['jitter'] is not None:
    images = random_jitter(jitter_key, images, task['jitter'])
    if images.shape[-1] == 3:
      images = random_colours(colour_key, images, task['jitter'])
  if task['blur'] is not None:
    images = random_blur(blur_key, images, task['blur'])
  return as_floats(images)


def views(task, key, images):
  """[batch, 2, height, width, channels]."""
  return jnp.stack([view(task, each, images) for each in jax.random.split(key)], 1)


def collect(parts, params, extra, batch, context):
  """Draws the two views of each image."""
  del params
  batch = gather(batch)
  return extra, {'views': views(parts.task, context.key, batch['images']), 'mask': batch['mask']}


def contrast(parts, params, extra, pairs, mask, context):
  """(nats [batch], found [batch], extra) of views [batch, 2, height, width, channels]; see `info_nce`."""
  rows = pairs.reshape(-1, *pairs.shape[2:])
  features, extra = representations.encode(parts.model, params, extra, rows, jnp.repeat(mask, 2), context)
  projected = parts.projection.apply({'params': params['projection']}, features)
  nats, found = info_nce(projected.reshape(len(mask), 2, -1), mask, parts.task['temperature'], context)
  return nats, found, extra


def loss(parts, params, extra, batch, context):
  mask, weight = batch['mask'], batch['mask'].sum()
  nats, found, extra = contrast(parts, params, extra, batch['views'], mask, context)
  return (nats * mask).sum(), (weight, extra, {'contrast_accuracy': ((found * mask).sum(), weight)})


def evaluate(parts, params, extra, batch, context):
  """The loss over views that are the same at each evaluation, and what the features tell of the labels."""
  mask, weight = batch['mask'], batch['mask'].sum()
  pairs = views(parts.task, context.key, batch['images'])
  nats, found, _ = contrast(parts, params, extra, pairs, mask, context)
  metrics = {'loss': ((nats * mask).sum(), weight), 'contrast_accuracy': ((found * mask).sum(), weight)}
  known = representations.measures(parts.model, params, extra, batch, parts.classes, parts.task['neighbours'])
  return metrics | known


def show(parts, map_of, params, extra, dataset, key):
  """'views.png': two views of each image, one above the other; 'embeddings.png': a map of the features."""
  batch = next(dataset.validation_batches())
  images = batch['images'][: min(SHOWN, int(batch['mask'].sum()))]
  pairs = np.asarray(views(parts.task, key, jnp.asarray(images)))  # [n, 2, height, width, channels]
  rows = np.concatenate([as_floats(images)[None], *(pairs[None, :, i] for i in range(2))])
  shown = {'views.png': grid(rows.reshape(-1, *rows.shape[2:]), len(images))}
  return shown | {'embeddings.png': map_of(params, extra, dataset)}
