"""What tasks on images share: a model of their shape, the batch from the rows of a resident set, pixels as numbers."""

import jax.numpy as jnp

from aigc_jax import models
from aigc_jax.errors import UsageError, listed


def fitted(model, dataset, source):
  """`config.model` with the images' shape and the number of classes. Raises UsageError where it has others."""
  model = (
    model | shape_of(model, dataset, source) | at_least(model, 'classes', dataset.facts['classes'], source)
  )
  models.check(model)
  return model


def shape_of(model, dataset, source):
  """{'image_shape': that of the images}. Raises UsageError where `config.model` has another."""
  shape = list(dataset.facts['image_shape'])
  if model['image_shape'] is not None and list(model['image_shape']) != shape:
    raise UsageError(
      f'config.model.image_shape: {listed(model["image_shape"])}, but the images of {source!r} are {listed(shape)}; '
      'leave it unset'
    )
  return {'image_shape': shape}


def at_least(model, name, least, source):
  """{name: value}, the one given if it is enough for the data."""
  value = model[name] or least
  if value < least:
    raise UsageError(
      f'config.model.{name}: {value} is too small for the {least} of {source}; leave it unset or use {least} or more'
    )
  return {name: value}


def gather(batch):
  """A batch with 'images' [batch, height, width, channels] and 'labels' [batch], resident or not.

  A resident batch holds 'rows' int32 [batch] of the arrays under 'resident'; neither is left in what is returned.
  """
  if 'resident' not in batch:
    return batch
  own = {name: value for name, value in batch.items() if name not in ('rows', 'resident')}
  if 'rows' not in batch:  # of a set that is too large to lie there whole
    return own
  # rows lie within the set, so nothing needs to be checked or filled in
  taken = {name: array.at[batch['rows']].get(mode='promise_in_bounds') for name, array in _arrays(batch)}
  return own | taken


def _arrays(batch):
  return ((name, jnp.asarray(array)) for name, array in batch['resident'].items())


def as_floats(images):
  """Pixels as float32 in [0, 1]: uint8 divided by 255, floats unchanged."""
  return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images
