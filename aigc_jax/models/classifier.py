"""Image classifiers: images of any size and number of channels -> logits of classes.

All are called alike: `model.apply(variables, images, mask=..., lengths=None, train=..., sum=..., rngs={'dropout':
key}, mutable=['batch_stats'])`. Each ignores what it does not need. With `method='encode'` they are encoders of images,
and give the features [batch, width] that classes are told from. Weights begin with the deviation of He et al. 2015
(eq. 10) times `init_scale`, biases at 0.
"""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.config import Fraction, NonNegative, Positive, Range
from aigc_jax.errors import UsageError
from aigc_jax.models.convolutions import RECTIFIED, Convolution, max_pool
from aigc_jax.models.layers import ACTIVATIONS, Dense, Dropout
from aigc_jax.models.normalization import BatchNorm

Decay = Range('above 0 and below 1', above=0, below=1)


def identity(tree):
  return tree


class MultilayerPerceptron(nn.Module):
  """Images [batch, height, width, channels] -> logits [batch, classes] through dense layers of `widths` units."""

  image_shape: Annotated[tuple[int, ...], Positive]  # height, width, channels
  classes: Annotated[int, Positive]  # how many there are
  widths: Annotated[tuple[int, ...], Positive] = (128, 64)  # units of the hidden layers
  activation: Literal['gelu', 'gelu_tanh', 'relu', 'relu2'] = 'relu'  # between layers
  dropout: Annotated[float, Fraction] | None = None  # after each hidden layer
  init_scale: Annotated[float, NonNegative] = 1.0  # times the deviation of He et al. 2015
  dtype: Any = jnp.float32

  @nn.compact
  def encode(self, images, *, mask=None, train=False, sum: Callable = identity):
    """Images -> features [batch, width]."""
    del mask, sum
    x = images.reshape(len(images), -1).astype(self.dtype)  # [batch, height * width * channels]
    for i, width in enumerate(self.widths):
      x = ACTIVATIONS[self.activation](dense(self, x, width, rectified(self), f'hidden_{i}'))
      x = Dropout(self.dropout)(x, train)
    return x

  def setup(self):
    self.head = make_head(self, self.widths[-1] if self.widths else math.prod(self.image_shape))

  def __call__(self, images, *, mask=None, lengths=None, train=False, sum: Callable = identity):
    del lengths
    return self.head(self.encode(images, mask=mask, train=train, sum=sum)).astype(jnp.float32)


class ConvolutionalNetwork(nn.Module):
  """Images [batch, height, width, channels] -> logits [batch, classes].

  Convolutions of 3 x 3 (one for each of `channels`), each followed by a rectifier and the maximum over 2 x 2 pixels;
  then a dense layer.
  """

  image_shape: Annotated[tuple[int, ...], Positive]  # height, width, channels
  classes: Annotated[int, Positive]  # how many there are
  # of each convolution; the image is halved after each
  channels: Annotated[tuple[int, ...], Positive] = (32, 64)
  dense_width: Annotated[int, Positive] = 128  # units of the hidden dense layer
  dropout: Annotated[float, Fraction] | None = None  # before and after the dense layer
  init_scale: Annotated[float, NonNegative] = 1.0  # times the deviation of He et al. 2015
  dtype: Any = jnp.float32

  @nn.compact
  def encode(self, images, *, mask=None, train=False, sum: Callable = identity):
    """Images -> features [batch, width]."""
    del mask, sum
    x = images.astype(self.dtype)
    for i, channels in enumerate(self.channels):
      x = Convolution(channels, init_scale=rectified(self), dtype=self.dtype, name=f'convolution_{i}')(x)
      x = jax.nn.relu(max_pool(x))  # the same as the maximum of rectified pixels, with a quarter of the work
    return x.reshape(len(x), -1)

  def setup(self):
    height, width = (max(1, side >> len(self.channels)) for side in self.image_shape[:2])
    inputs = height * width * (self.channels[-1] if self.channels else self.image_shape[2])
    self.drop, self.head = Dropout(self.dropout), make_head(self, self.dense_width)
    self.hidden = Dense(self.dense_width, True, rectified(self) / math.sqrt(inputs), self.dtype)

  def __call__(self, images, *, mask=None, lengths=None, train=False, sum: Callable = identity):
    del lengths
    x = self.drop(self.encode(images, mask=mask, train=train, sum=sum), train)
    x = self.drop(jax.nn.relu(self.hidden(x)), train)
    return self.head(x).astype(jnp.float32)


class ResidualNetwork(nn.Module):
  """Images [batch, height, width, channels] -> logits [batch, classes].

  A convolution, stages of pre-activation residual blocks (He et al. 2016, figure 1b), each stage but the first with
  half the height and width, and the mean over all places of what is left.
  """

  image_shape: Annotated[tuple[int, ...], Positive]  # height, width, channels
  classes: Annotated[int, Positive]  # how many there are
  channels: Annotated[tuple[int, ...], Positive] = (32, 64, 128)  # of each stage
  blocks: Annotated[int, Positive] = 1  # of two convolutions each, in every stage
  dropout: Annotated[float, Fraction] | None = None  # before the logits
  normalization_decay: Annotated[float, Decay] = (
    0.9  # of running statistics; PyTorch's momentum is 1 less this
  )
  normalization_epsilon: Annotated[float, Positive] = 1e-5  # added to the variance before its root
  init_scale: Annotated[float, NonNegative] = 1.0  # times the deviation of He et al. 2015
  dtype: Any = jnp.float32

  @nn.compact
  def encode(self, images, *, mask=None, train=False, sum: Callable = identity):
    """Images -> features [batch, width]."""

    def convolve(x, features, name, size=3, stride=1):
      return Convolution(features, size, stride, rectified(self), False, self.dtype, name=name)(x)

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
    return normalize(x, 'final_norm').mean((1, 2))

  def setup(self):
    self.drop, self.head = Dropout(self.dropout), make_head(self, self.channels[-1])

  def __call__(self, images, *, mask=None, lengths=None, train=False, sum: Callable = identity):
    del lengths
    x = self.encode(images, mask=mask, train=train, sum=sum)
    return self.head(self.drop(x, train)).astype(jnp.float32)


def make_head(model, width):
  """From features of that width to logits."""
  return Dense(model.classes, True, model.init_scale / math.sqrt(width), model.dtype)


def dense(model, x, features, init_scale, name):
  return Dense(features, True, init_scale / math.sqrt(x.shape[-1]), model.dtype, name=name)(x)


def rectified(model):
  """`init_scale` of what a rectifier follows (He et al. 2015, eq. 10)."""
  return model.init_scale * RECTIFIED


def check(config):
  """Rules across the fields of a config of `ResidualNetwork`. Raises UsageError."""
  if not config['channels']:
    raise UsageError('config.model.channels: is empty; it takes those of one stage or more, as in 32,64,128')
