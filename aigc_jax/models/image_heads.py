"""What reads an image encoder where there are no labels: a projection to compare, and pixels to give back."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.models.autoencoder import Decoder
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
  """Features [batch, width] -> images [batch, height, width, channels].

  They pass through `hidden` units, so that features have to say what an image is, and cannot keep its pixels.
  """

  image_shape: tuple[int, ...]  # height, width, channels
  hidden: int
  channels: tuple[int, ...]  # as those of an encoder that halves the image with each
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    deviation = RECTIFIED / math.sqrt(x.shape[-1])
    x = jax.nn.relu(Dense(self.hidden, True, deviation, self.dtype, name='hidden')(x))
    decoder = Decoder('convolutional', self.channels, self.image_shape, 'relu', self.dtype, name='decoder')
    return decoder(x)
