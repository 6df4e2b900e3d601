"""Convolutions and pooling of images of any size, what doubles them again, and residual blocks between.

Images are [batch, height, width, channels]. Floats are computed in each part's `dtype`, parameters are float32.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.models.layers import matmul, normal

RECTIFIED = math.sqrt(2)  # `init_scale` before a rectifier (He et al. 2015, eq. 10)


def halved(image_size, stages):
  """(height, width) after each of `stages` halvings, rounded up, the first one included: [stages + 1] pairs."""
  sizes = [tuple(image_size)]
  for _ in range(stages):
    sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
  return sizes


class Convolution(nn.Module):
  """[batch, height, width, channels] -> [batch, height / stride, width / stride, features], sides rounded up."""

  features: int
  size: int = 3
  stride: int = 1
  init_scale: Any = RECTIFIED  # of the deviation 1 / sqrt(inputs); may be traced
  bias: bool = True
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    shape = (self.size, self.size, x.shape[-1], self.features)
    kernel = self.param('kernel', normal(self.init_scale / math.sqrt(math.prod(shape[:3]))), shape)
    y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
    if self.bias:
      y = y + self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
    return y


def convolve(x, kernel, stride=1):
  """x [batch, height, width, channels] * kernel [size, size, channels, features], zeros around the edges.

  The padding is size // 2 on every side, as in PyTorch; XLA's 'SAME' is lopsided where the stride is above 1.
  """
  if kernel.shape[:2] == (1, 1):
    return matmul(x[:, ::stride, ::stride], kernel[0, 0])
  padding = kernel.shape[0] // 2
  return jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )


def max_pool(x):
  """The maximum over 2 x 2 pixels, [batch, height, width, c] -> [batch, height // 2, width // 2, c].

  An odd row or column at the end is left out; a side of one pixel stays. Written as maxima of slices, since the
  gradient of XLA's own reduction is slow on a CPU.
  """
  for axis in (1, 2):
    if (pairs := x.shape[axis] // 2) > 0:
      first, second = (jax.lax.slice_in_dim(x, i, 2 * pairs, 2, axis) for i in (0, 1))
      x = jnp.maximum(first, second)
  return x


class Doubling(nn.Module):
  """[batch, h, w, channels] -> [batch, height, width, features], where h = ceil(height / 2) and so for w.

  A transposed convolution of 4 x 4 and stride 2, written as a product: each pixel of the corners' grid looks at its
  2 x 2 neighbours and writes 2 x 2 pixels, the outermost of which are cropped (Shi et al. 2016, section 3.2). XLA's
  CPU backend takes ten times as long for the gradient of the transposed convolution itself.
  """

  features: int
  size: tuple[int, int]  # (height, width) of the result
  init_scale: Any = RECTIFIED
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    batch, h, w, channels = x.shape
    shape = (2, 2, channels, 2, 2, self.features)
    kernel = self.param('kernel', normal(self.init_scale / math.sqrt(4 * channels)), shape)
    bias = self.param('bias', nn.initializers.zeros, (self.features,))
    x = jnp.pad(x.astype(self.dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
    corners = [x[:, i : i + h + 1, j : j + w + 1] for i in range(2) for j in range(2)]
    patches = jnp.concatenate(corners, -1)  # [batch, h + 1, w + 1, 4 * channels]
    y = matmul(patches, kernel.reshape(4 * channels, 4 * self.features))
    y = y.reshape(batch, h + 1, w + 1, 2, 2, self.features).swapaxes(2, 3)
    y = y.reshape(batch, 2 * h + 2, 2 * w + 2, self.features)
    height, width = self.size
    return y[:, 1 : height + 1, 1 : width + 1] + bias.astype(self.dtype)


class Residual(nn.Module):
  """x + (rectifier, 3 x 3, rectifier, 1 x 1) of x, as van den Oord et al. 2017 have it (section 4.1)."""

  hidden: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    h = Convolution(self.hidden, dtype=self.dtype, name='in')(jax.nn.relu(x))
    return x + Convolution(x.shape[-1], 1, init_scale=1.0, dtype=self.dtype, name='out')(jax.nn.relu(h))
