"""What reads an image encoder where there are no labels: a projection to compare, and pixels to give back."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.models.convolutions import RECTIFIED
from aigc_jax.models.layers import Dense


class Projection(nn.Module):
  """Features [batch, width] -> [batch, widths[-1]]: layers with rectifiers between (Chen et al. 2020, section 4.2)."""

  widths: tuple[int, ...]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    for i, width in enumerate(self.widths):
      x = jax.nn.relu(x) if i else x
      x = Dense(width, True, RECTIFIED / math.sqrt(x.shape[-1]), self.dtype, name=f'layer_{i}')(x)
    return x


class PixelHead(nn.Module):
  """Features of an image and of its places -> the image [batch, height, width, channels].

  Each place of the grid gives the pixels of its own cell, from what is known of it and of the whole image.
  """

  image_shape: tuple[int, ...]  # height, width, channels
  hidden: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, encoded):
    height, width, channels = self.image_shape
    batch, rows, columns, _ = encoded.places.shape
    cell = -(-height // rows), -(-width // columns)  # pixels of each place; those beyond the image are cut off
    of_place = self.layer(encoded.places, self.hidden, 'of_place')
    of_image = self.layer(encoded.features, self.hidden, 'of_image')[:, None, None]
    pixels = self.layer(jax.nn.relu(of_place + of_image), math.prod(cell) * channels, 'pixels')
    grid = pixels.reshape(batch, rows, columns, *cell, channels).swapaxes(2, 3)
    return grid.reshape(batch, rows * cell[0], columns * cell[1], channels)[:, :height, :width]

  def layer(self, x, features, name):
    return Dense(features, True, 1 / math.sqrt(x.shape[-1]), self.dtype, name=name)(x)
