"""Image classifiers: images of any size and number of channels -> logits of classes.

All are called alike: `model.apply(variables, images, mask=..., lengths=None, train=..., sum=..., rngs={'dropout':
key}, mutable=['batch_stats'])`. Each ignores what it does not need. Weights begin with the deviation of He et al. 2015
(eq. 10) times `init_scale`, biases at 0.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.config import Fraction, NonNegative, Positive, Range
from aigc_jax.models.layers import ACTIVATIONS, Dense, Dropout, normal
from aigc_jax.models.normalization import BatchNorm

RECTIFIED, LINEAR = 2.0, 1.0  # gain of the variance of weights, before a rectifier and before none
Decay = Range('above 0 and below 1', above=0, below=1)


def identity(tree):
  return tree


class MultilayerPerceptron(nn.Module):
  """Images [batch, height, width, channels] -> logits [batch, classes] through dense layers of `widths` units."""

  image_shape: Annotated[tuple[int, ...], Positive]  # height, width, channels
  classes: Annotated[int, Positive]
  widths: Annotated[tuple[int, ...], Positive] = (128, 64)
  activation: Literal['gelu', 'gelu_tanh', 'relu', 'relu2'] = 'relu'
  dropout: Annotated[float, Fraction] | None = None  # after each hidden layer
  init_scale: Annotated[float, NonNegative] = 1.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images, *, mask=None, lengths=None, train=False, sum: Callable = identity):
    del mask, lengths, sum
    x = images.reshape(len(images), -1).astype(self.dtype)  # [batch, height * width * channels]
    for i, width in enumerate(self.widths):
      x = ACTIVATIONS[self.activation](dense(self, x, width, RECTIFIED, f'hidden_{i}'))
      x = Dropout(self.dropout)(x, train)
    return dense(self, x, self.classes, LINEAR, 'head').astype(jnp.float32)


class ConvolutionalNetwork(nn.Module):
  """Images [batch, height, width, channels] -> logits [batch, classes].

  Convolutions of 3 x 3 (one for each of `channels`), each followed by a rectifier and the maximum over 2 x 2 pixels;
  then a dense layer.
  """

  image_shape: Annotated[tuple[int, ...], Positive]  # height, width, channels
  classes: Annotated[int, Positive]
  channels: Annotated[tuple[int, ...], Positive] = (32, 64)
  dense_width: Annotated[int, Positive] = 128
  dropout: Annotated[float, Fraction] | None = None  # before and after the dense layer
  init_scale: Annotated[float, NonNegative] = 1.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images, *, mask=None, lengths=None, train=False, sum: Callable = identity):
    del mask, lengths, sum
    x = images.astype(self.dtype)
    for i, channels in enumerate(self.channels):
      x = Convolution(channels, True, self.init_scale, dtype=self.dtype, name=f'convolution_{i}')(x)
      x = jax.nn.relu(max_pool(x))  # the same as the maximum of rectified pixels, with a quarter of the work
    x = Dropout(self.dropout)(x.reshape(len(x), -1), train)
    x = jax.nn.relu(dense(self, x, self.dense_width, RECTIFIED, 'hidden'))
    x = Dropout(self.dropout)(x, train)
    return dense(self, x, self.classes, LINEAR, 'head').astype(jnp.float32)


class ResidualNetwork(nn.Module):
  """Images [batch, height, width, channels] -> logits [batch, classes].

  A convolution, stages of pre-activation residual blocks (He et al. 2016, figure 1b), each stage but the first with
  half the height and width, and the mean over all places of what is left.
  """

  image_shape: Annotated[tuple[int, ...], Positive]  # height, width, channels
  classes: Annotated[int, Positive]
  channels: Annotated[tuple[int, ...], Positive] = (32, 64, 128)  # of each stage
  blocks: Annotated[int, Positive] = 1  # of two convolutions each, in every stage
  dropout: Annotated[float, Fraction] | None = None  # before the logits
  normalization_decay: Annotated[float, Decay] = (
    0.9  # of running statistics; PyTorch's momentum is 1 less this
  )
  normalization_epsilon: Annotated[float, Positive] = 1e-5
  init_scale: Annotated[float, NonNegative] = 1.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, images, *, mask=None, lengths=None, train=False, sum: Callable = identity):
    del lengths

    def convolve(x, features, name, size=3, stride=1):
      return Convolution(features, False, self.init_scale, size, stride, self.dtype, name=name)(x)

    def normalize(x, name):
      norm = BatchNorm(self.normalization_decay, self.normalization_epsilon, self.dtype, name=name)
      return jax.nn.relu(norm(x, mask, train, sum))

    def block(x, features, stride, name):
      y = normalize(x, f'{name}_norm_0')
      if stride > 1 or x.shape[-1] != features:
        x = convolve(y, features, f'{name}_shortcut', 1, stride)
      y = convolve(y, features, f'{name}_convolution_0', 3, stride)
      return x + convolve(normalize(y, f'{name}_norm_1'), features, f'{name}_convolution_1')

    x = convolve(images.astype(self.dtype), self.channels[0], 'stem')
    for stage, features in enumerate(self.channels):
      for i in range(self.blocks):
        x = block(x, features, 2 if stage and not i else 1, f'stage_{stage}_block_{i}')
    x = normalize(x, 'final_norm').mean((1, 2))  # [batch, features]
    x = Dropout(self.dropout)(x, train)
    return dense(self, x, self.classes, LINEAR, 'head').astype(jnp.float32)


def dense(model, x, features, gain, name):
  deviation = model.init_scale * math.sqrt(gain / x.shape[-1])
  return Dense(features, True, deviation, model.dtype, name=name)(x)


class Convolution(nn.Module):
  """[batch, height, width, channels] -> [batch, height / stride, width / stride, features], sides rounded up."""

  features: int
  bias: bool
  init_scale: Any  # times the deviation of He et al. 2015, eq. 10
  size: int = 3
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    shape = (self.size, self.size, x.shape[-1], self.features)
    deviation = self.init_scale * math.sqrt(RECTIFIED / math.prod(shape[:3]))
    kernel = self.param('kernel', normal(deviation), shape).astype(self.dtype)
    y = convolve(x.astype(self.dtype), kernel, self.stride)
    if self.bias:
      y = y + self.param('bias', nn.initializers.zeros, (self.features,)).astype(self.dtype)
    return y


def convolve(x, kernel, stride=1):
  """x [batch, height, width, channels] * kernel [size, size, channels, features], zeros around the edges.

  The padding is size // 2 on every side, as in PyTorch; XLA's 'SAME' is lopsided where the stride is above 1.
  """
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
