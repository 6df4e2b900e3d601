"""What tasks on images share: the batch from the rows of a resident set, and pixels as numbers."""

import jax.numpy as jnp


def gather(batch):
  """A batch with 'images' [batch, height, width, channels] and 'labels' [batch], resident or not.

  A resident batch holds 'rows' int32 [batch] of the arrays under 'resident'; neither is left in what is returned.
  """
  if 'resident' not in batch:
    return batch
  # rows lie within the set, so nothing needs to be checked or filled in
  taken = {name: array.at[batch['rows']].get(mode='promise_in_bounds') for name, array in _arrays(batch)}
  return {name: value for name, value in batch.items() if name not in ('rows', 'resident')} | taken


def _arrays(batch):
  return ((name, jnp.asarray(array)) for name, array in batch['resident'].items())


def as_floats(images):
  """Pixels as float32 in [0, 1]: uint8 divided by 255, floats unchanged."""
  return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images
