"""Autoencoders of images, plain or variational, dense or convolutional."""

import math
from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.config import Positive
from aigc_jax.errors import UsageError, listed
from aigc_jax.models.convolutions import Convolution, Doubling, halved
from aigc_jax.models.layers import ACTIVATIONS

SCALED = ('gaussian', 'logistic')  # likelihoods with a learned scale for each channel
FIRST_SCALE = 0.1  # of pixels from 0 to 1


def dense(features, x, dtype, name):
  """A layer on x [batch, inputs] that begins uniform in +-1 / sqrt(inputs), biases too.

  Three times the variance, which keeps that of the signal, costs the evidence bound a nat after five epochs.
  """
  bound = 1 / math.sqrt(x.shape[-1])
  begin = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
  return nn.Dense(features, dtype=dtype, kernel_init=begin, bias_init=begin, name=name)(x)


class Encoder(nn.Module):
  """Images [batch, height, width, channels], classes [batch, classes] or None -> moments [batch, outputs]."""

  architecture: str
  widths: tuple[int, ...]
  outputs: int
  activation: str
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, classes):
    for i, width in enumerate(self.widths):
      if self.architecture == 'dense':
        x = dense(width, x.reshape(len(x), -1), self.dtype, f'layer_{i}')
      else:
        x = Convolution(width, stride=2, dtype=self.dtype, name=f'layer_{i}')(x)
      x = ACTIVATIONS[self.activation](x)
    x = x.reshape(len(x), -1)
    if classes is not None:
      x = jnp.concatenate([x, classes.astype(x.dtype)], -1)
    return dense(self.outputs, x, self.dtype, 'moments')


class Decoder(nn.Module):
  """Latents [batch, latent_width], with the classes at their end -> images [batch, height, width, channels]."""

  architecture: str
  widths: tuple[int, ...]  # as in the encoder: the first is the one next to the image
  image_shape: tuple[int, int, int]
  activation: str
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    activate, widths = ACTIVATIONS[self.activation], self.widths
    if self.architecture == 'dense':
      for i, width in enumerate(reversed(widths)):
        x = activate(dense(width, x, self.dtype, f'layer_{i}'))
      return dense(math.prod(self.image_shape), x, self.dtype, 'images').reshape(-1, *self.image_shape)
    sizes = halved(self.image_shape[:2], len(widths))
    x = dense(math.prod(sizes[-1]) * widths[-1], x, self.dtype, 'first')
    x = activate(x).reshape(-1, *sizes[-1], widths[-1])
    for i in reversed(range(1, len(widths))):
      x = activate(Doubling(widths[i - 1], sizes[i], dtype=self.dtype, name=f'layer_{i}')(x))
    return Doubling(self.image_shape[2], sizes[0], init_scale=1.0, dtype=self.dtype, name='images')(x)


class Autoencoder(nn.Module):
  """Images [batch, height, width, channels] -> latents [batch, latent_width] -> images.

  Fields are those of `config.model`. Kingma & Welling 2014 (appendix C): one dense hidden layer and a Gaussian
  posterior. `widths=()` with `dense` is linear: probabilistic principal components (Tipping & Bishop 1999).
  """

  image_shape: Annotated[tuple[int, ...], Positive]  # height, width, channels
  classes: Annotated[int, Positive] | None = None  # how many there are, where `conditional`; None: the data's
  # of the encoder, and of the decoder, which mirrors it
  architecture: Literal['dense', 'convolutional'] = 'dense'
  # Hidden units of the encoder's layers, or channels of its convolutions of stride 2; the decoder mirrors them.
  widths: Annotated[tuple[int, ...], Positive] = (400,)
  latent_width: Annotated[int, Positive] = 20  # numbers in a latent
  posterior: Literal['none', 'gaussian'] = 'gaussian'  # none: a plain autoencoder
  conditional: bool = (
    False  # the class joins the encoder's last hidden layer and the latent (Sohn et al. 2015)
  )
  activation: Literal['relu', 'gelu', 'gelu_tanh', 'relu2'] = 'relu'  # between layers
  # of pixels, given the latent; see tasks/likelihoods.py
  likelihood: Literal['bernoulli', 'gaussian', 'logistic', 'squared_error'] = 'bernoulli'
  dtype: Any = jnp.float32  # of the computation; parameters and results are float32

  def setup(self):
    shared = (self.architecture, tuple(self.widths))
    outputs = self.latent_width * (2 if self.posterior == 'gaussian' else 1)
    self.encoder = Encoder(*shared, outputs, self.activation, self.dtype)
    self.decoder = Decoder(*shared, tuple(self.image_shape), self.activation, self.dtype)
    self.log_scale = learned_scale(self)

  def __call__(self, images, labels=None):
    return self.decode(self.encode(images, labels)[0], labels)

  def encode(self, images, labels=None):
    """Images [batch, height, width, channels] float32, labels [batch] int32 where conditional -> the posterior.

    Returns:
      (mean [batch, latent_width], log_variance of the same shape or None), float32.
    """
    moments = self.encoder(images, self.one_hot(labels)).astype(jnp.float32)
    return tuple(jnp.split(moments, 2, -1)) if self.posterior == 'gaussian' else (moments, None)

  def decode(self, latents, labels=None):
    """Latents [batch, latent_width], labels [batch] -> what the likelihood is of.

    Returns:
      (outputs [batch, height, width, channels] float32: logits for 'bernoulli', else means; log_scale [channels],
      or None where the likelihood has no scale).
    """
    if self.conditional:
      latents = jnp.concatenate([latents, self.one_hot(labels)], -1)
    return self.decoder(latents).astype(jnp.float32), self.log_scale

  def one_hot(self, labels):
    return jax.nn.one_hot(labels, self.classes) if self.conditional else None


def learned_scale(module):
  """The parameter log_scale [channels] of a module whose likelihood has one, else None; call it in `setup`."""
  if module.likelihood not in SCALED:
    return None
  channels = module.image_shape[2]
  return module.param('log_scale', nn.initializers.constant(math.log(FIRST_SCALE)), (channels,))


def check(config):
  """Rules across the fields of a model config. Raises UsageError."""
  check_shape(config)
  if config['architecture'] == 'convolutional' and not config['widths']:
    raise UsageError('config.model.widths: is empty, which is for the dense architecture; use 32,64 or so')


def check_shape(config):
  """Raises UsageError where an image shape was given and is none."""
  shape = config['image_shape']
  if shape is not None and len(shape) != 3:
    raise UsageError(
      f'config.model.image_shape: {listed(shape)}; it takes height, width and channels, or none'
    )
