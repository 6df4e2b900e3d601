"""Random changes of images inside the compiled step, as pure functions of a key.

Images are [batch, height, width, channels]. What happens to a row depends on the key, its place and its own pixels.
"""

import jax
import jax.numpy as jnp

from aigc_jax.tasks.images import as_floats


def random_crop(key, images, padding: int):
  """Pads with zeros by `padding` on each side and cuts the old size out again, at a random place for each image."""
  batch, height, width, channels = images.shape
  padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  corners = jax.random.randint(key, (batch, 2), 0, 2 * padding + 1)  # [batch, top and left]

  def cut(image, corner):
    return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, channels))

  return jax.vmap(cut)(padded, corners)


def random_flip(key, images):
  """Mirrors each image left to right with probability 1/2."""
  flips = jax.random.bernoulli(key, shape=images.shape[:1])  # [batch]
  return jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)


def random_jitter(key, images, strength):
  """Random contrast and brightness for each image, as float32 clipped to [0, 1].

  Differences from the image's mean are scaled by a factor from [1 - strength, 1 + strength], then a number from
  [-strength, strength] is added to all pixels. `strength` may be traced; 0 changes nothing.
  """
  images = as_floats(images)
  draws = jax.random.uniform(
    key, (len(images), 2), minval=-1.0, maxval=1.0
  )  # [batch, contrast and brightness]
  contrast, brightness = (draws[:, i, None, None, None] * strength for i in range(2))
  mean = images.mean(axis=(1, 2, 3), keepdims=True)
  return jnp.clip(images + (images - mean) * contrast + brightness, 0.0, 1.0)


def dynamic_binarization(key, images):
  """float32 0 or 1, where the probability of 1 is the intensity: Salakhutdinov & Murray 2008, section 5.

  Of uint8 images the probability is rounded to 1/65536, so that 32 random bits do for two pixels.
  """
  if images.dtype != jnp.uint8:
    return (jax.random.uniform(key, images.shape) < images).astype(jnp.float32)
  batch, pixels = len(images), images[0].size
  halves = jnp.pad(images.reshape(batch, pixels), ((0, 0), (0, pixels % 2))).reshape(batch, 2, -1)
  levels = halves.astype(jnp.uint32)
  thresholds = levels * 257 + (levels >= 128)  # levels * 65536 / 255, rounded
  bits = jax.random.bits(key, halves[:, 0].shape, jnp.uint32)
  drawn = jnp.stack([(bits & 0xFFFF) < thresholds[:, 0], (bits >> 16) < thresholds[:, 1]], axis=1)
  return drawn.reshape(batch, -1)[:, :pixels].reshape(images.shape).astype(jnp.float32)
