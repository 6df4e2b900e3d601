"""A Transformer that sees images: the language model's blocks over their patches (Dosovitskiy et al. 2021)."""

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from aigc_jax.config import Fraction, NonNegative, Positive
from aigc_jax.errors import UsageError
from aigc_jax.models import blocks, masks
from aigc_jax.models.attention import Where
from aigc_jax.models.classifier import identity
from aigc_jax.models.layers import Dense, Dropout, normal


class VisionTransformer(nn.Module):
  """Images [batch, height, width, channels] -> logits [batch, classes].

  Each patch of `patch_size` x `patch_size` pixels is a token, with a learned vector for its place; the mean of all
  tokens is what the head reads (Beyer et al. 2022, "Better plain ViT baselines").
  """

  image_shape: Annotated[tuple[int, ...], Positive]  # height, width, channels
  classes: Annotated[int, Positive]  # how many there are
  patch_size: Annotated[int, Positive] = 4  # pixels; divides both sides of an image
  layers: Annotated[int, Positive] = 4  # blocks, one after another
  heads: Annotated[int, Positive] = 4  # of attention
  width: Annotated[int, Positive] = 64  # of the vectors between blocks
  mlp_width: Annotated[int, Positive] | None = None  # None: 4 x width; swiglu: 8/3 x width, up to 32s
  # of the vectors that each part reads, or writes
  normalization: Literal['layer_norm', 'rms_norm'] = 'layer_norm'
  # added to the variance, or mean square, before its root
  normalization_epsilon: Annotated[float, Positive] = 1e-6
  activation: Literal['gelu', 'gelu_tanh', 'relu', 'relu2', 'silu', 'swiglu'] = 'gelu'  # between layers
  bias: bool = True  # whether layers add one
  # of attention weights and of what each part writes; None: none
  dropout: Annotated[float, Fraction] | None = None
  init_scale: Annotated[float, NonNegative] = 0.02  # standard deviation of the initial weights
  # cudnn: flash attention; auto: as xla, but training puts cudnn in its place where that applies
  attention: Literal['auto', 'xla', 'cudnn'] = 'auto'
  dtype: Any = jnp.float32  # of the computation; parameters and logits are float32

  def setup(self):
    height, width, channels = self.image_shape
    places = (height // self.patch_size) * (width // self.patch_size)
    # as wide as the signal: patches of pixels from 0 to 1 are small numbers
    deviation = 1 / math.sqrt(self.patch_size**2 * channels)
    self.patch = Dense(self.width, True, deviation, self.dtype)
    self.position = self.param('position', normal(self.init_scale), (places, self.width))
    self.block, self.final_norm = blocks.make_blocks(self, self.layers), blocks.make_norm(self)()
    self.drop = Dropout(self.dropout)
    self.head = Dense(self.classes, True, self.init_scale, self.dtype)

  def encode(self, images, *, mask=None, train=False, sum: Callable = identity):
    """Images -> features [batch, width]: the mean over all tokens."""
    del mask, sum
    x = self.patch(patches_of(images, self.patch_size)) + self.position.astype(
      self.dtype
    )  # [batch, places, width]
    x, where = self.drop(x, train), Where(blocks.seen(self, masks.Structure(), x.shape[1]), None, None)
    for block in self.block:
      x, _ = block(x, where, None, train)
    return self.final_norm(x).mean(1)

  def __call__(self, images, *, mask=None, lengths=None, train=False, sum: Callable = identity):
    del lengths
    x = self.encode(images, mask=mask, train=train, sum=sum)
    return self.head(self.drop(x, train)).astype(jnp.float32)


def patches_of(images, size):
  """[batch, height, width, channels] -> patches [batch, places, size * size * channels], row by row."""
  batch, height, width, channels = images.shape
  rows, columns = height // size, width // size
  cut = images.reshape(batch, rows, size, columns, size, channels).swapaxes(2, 3)
  return cut.reshape(batch, rows * columns, size * size * channels)


def check(config):
  """Rules across the fields of a model config. Raises UsageError."""
  if config['width'] % config['heads']:
    raise UsageError(
      f'config.model.heads: {config["heads"]} do not divide config.model.width = {config["width"]}'
    )
  size, shape = config['patch_size'], config['image_shape']
  if shape is not None and (shape[0] % size or shape[1] % size):
    fitting = [n for n in range(1, 1 + min(shape[:2])) if not shape[0] % n and not shape[1] % n]
    raise UsageError(
      f'config.model.patch_size: {size} does not divide images of {shape[0]} x {shape[1]}; '
      f'use {", ".join(map(str, fitting))}'
    )
