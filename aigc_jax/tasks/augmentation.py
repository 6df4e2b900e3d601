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


def random_resized_crop(key, images, least_area, ratio=4 / 3):
  """Cuts a rectangle out of each image, anywhere, and stretches it to the whole size, as float32.

  Its area is at least the part `least_area` of the image's, which may be traced, and its sides are up to `ratio` from
  the image's own proportions (Szegedy et al. 2015, section 6), less where no such rectangle of its area would fit.
  Pixels are linear between their neighbours.
  """
  images = as_floats(images)
  area_key, ratio_key, place_key = jax.random.split(key, 3)
  batch, height, width, _ = images.shape
  area = least_area + (1 - least_area) * jax.random.uniform(area_key, (batch,))
  widest = jnp.minimum(jnp.log(ratio), -jnp.log(area))  # beyond it a side would be longer than the image's
  log_ratio = jax.random.uniform(ratio_key, (batch,), minval=-1.0, maxval=1.0) * widest
  sides = [
    jnp.minimum(jnp.sqrt(area * jnp.exp(sign * log_ratio)), 1.0) for sign in (-1, 1)
  ]  # parts of the image's
  places = jax.random.uniform(place_key, (2, batch))
  rows, columns = (
    stretch(size, side * size, place * (1 - side) * size)
    for size, side, place in zip((height, width), sides, places, strict=True)
  )
  return resampled(images, rows, columns)


def stretch(size, length, begin):
  """What makes `size` pixels of the stretch [begin, begin + length) of as many, [batch, size, size]; both [batch]."""
  pixels = jnp.arange(size)
  at = begin[:, None] + (pixels + 0.5) * (length / size)[:, None] - 0.5  # [batch, size], of the middles
  at = jnp.clip(at, 0, size - 1)
  return jnp.maximum(0, 1 - jnp.abs(at[..., None] - pixels))


def random_blur(key, images, largest):
  """Blurs every second image by a Gaussian of 0.1 to `largest` pixels, which may be traced (Chen et al. 2020, app. A).

  float32; the weights of pixels beyond an edge go to those within.
  """
  images = as_floats(images)
  chance_key, width_key = jax.random.split(key)
  batch, height, width, _ = images.shape
  deviation = jax.random.uniform(width_key, (batch,), minval=0.1, maxval=jnp.maximum(largest, 0.1))
  blurs = jax.random.bernoulli(chance_key, shape=(batch,))
  return resampled(images, *(gaussian(size, deviation, blurs) for size in (height, width)))


def gaussian(size, deviation, blurs):
  """[batch, size, size] weights of a blur along one side; the identity where `blurs` [batch] is False."""
  distance = jnp.arange(size)[:, None] - jnp.arange(size)
  weights = jax.nn.softmax(-0.5 * jnp.square(distance / deviation[:, None, None]), -1)
  return jnp.where(blurs[:, None, None], weights, jnp.eye(size))


def resampled(images, rows, columns):
  """Each image as a mix of its rows and columns: weights [batch, height, height] and [batch, width, width]."""
  return jnp.einsum('bih,bjw,bhwc->bijc', rows, columns, images, optimize=[(0, 2), (0, 1)])


# Luma and two differences of colour, of red, green and blue (NTSC 1953): a rotation of the latter turns the hue.
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def random_colours(key, images, strength):
  """Random saturation and hue for each image of three channels, and grey for every fifth (Chen et al. 2020, app. A).

  Differences of colour are scaled by a factor from [1 - strength, 1 + strength] and turned by up to a quarter of
  `strength` of a full circle; float32 clipped to [0, 1]. `strength` may be traced.
  """
  images = as_floats(images)
  change_key, grey_key = jax.random.split(key)
  scale, turn = jax.random.uniform(change_key, (2, len(images)), minval=-1.0, maxval=1.0) * strength
  scale = jnp.where(jax.random.bernoulli(grey_key, 0.2, scale.shape), 0.0, 1 + scale)
  cosine, sine = scale * jnp.cos(turn * jnp.pi / 2), scale * jnp.sin(turn * jnp.pi / 2)  # [batch]
  to, back = jnp.array(YIQ), jnp.linalg.inv(jnp.array(YIQ))
  luma, first, second = jnp.moveaxis(images @ to.T, -1, 0)  # [batch, height, width] each
  cosine, sine = cosine[:, None, None], sine[:, None, None]
  turned = jnp.stack([luma, cosine * first - sine * second, sine * first + cosine * second], -1)
  return jnp.clip(turned @ back.T, 0.0, 1.0)


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
