"""A convolutional autoencoder whose latents are codes of a codebook (van den Oord et al. 2017)."""

from typing import Annotated, Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from aigc_jax.config import NonNegative, Positive
from aigc_jax.models.autoencoder import check_shape, learned_scale
from aigc_jax.models.convolutions import RECTIFIED, Convolution, Doubling, Residual, halved


class VectorQuantizedAutoencoder(nn.Module):
  """Images [batch, height, width, channels] -> a grid of vectors -> images; the codebook is the caller's.

  Fields are those of `config.model`. The codebook [codebook_size, code_width] is no parameter made here, since it
  begins with encoded images and may change without gradients.
  """

  image_shape: Annotated[tuple[int, ...], Positive]  # height, width, channels
  widths: Annotated[tuple[int, ...], Positive] = (64, 64)  # channels after each convolution of stride 2
  residual_blocks: Annotated[int, NonNegative] = 2  # in the encoder, and again in the decoder
  residual_width: Annotated[int, Positive] = 32  # channels inside a residual block
  code_width: Annotated[int, Positive] = 64  # numbers in a code
  codebook_size: Annotated[int, Positive] = 128  # codes
  codebook: Literal['ema', 'gradient'] = 'ema'  # ema: moving averages (their appendix A.1), no gradient
  # of pixels, given the latent; see tasks/likelihoods.py
  likelihood: Literal['bernoulli', 'gaussian', 'logistic', 'squared_error'] = 'bernoulli'
  dtype: Any = jnp.float32  # of the computation; parameters and results are float32

  def setup(self):
    widths, dtype = tuple(self.widths), self.dtype
    sizes, channels = halved(self.image_shape[:2], len(widths)), (self.image_shape[2], *widths[:-1])
    blocks = lambda: [Residual(self.residual_width, dtype) for _ in range(self.residual_blocks)]
    self.down = [Convolution(width, stride=2, dtype=dtype) for width in widths]
    self.encoder_block, self.decoder_block = blocks(), blocks()
    self.to_codes = Convolution(self.code_width, 1, init_scale=1.0, dtype=dtype)
    self.from_vectors = Convolution(widths[-1] if widths else channels[0], 3, dtype=dtype)
    scales = [1.0] + [RECTIFIED] * (len(widths) - 1)
    self.up = [Doubling(channels[i], sizes[i], scales[i], dtype) for i in range(len(widths))]
    self.log_scale = learned_scale(self)

  def __call__(self, images, labels=None):
    return self.decode(self.encode(images))

  def encode(self, images, labels=None):
    """Images [batch, height, width, channels] float32 -> vectors [batch, h, w, code_width] float32."""
    del labels
    x = images
    for i, layer in enumerate(self.down):
      x = layer(jax.nn.relu(x) if i else x)
    for block in self.encoder_block:
      x = block(x)
    return self.to_codes(jax.nn.relu(x)).astype(jnp.float32)

  def decode(self, vectors, labels=None):
    """Vectors [batch, h, w, code_width] -> (outputs [batch, height, width, channels], log_scale or None)."""
    del labels
    x = self.from_vectors(vectors)
    for block in self.decoder_block:
      x = block(x)
    for layer in reversed(self.up):
      x = layer(jax.nn.relu(x))
    return x.astype(jnp.float32), self.log_scale

  def codes(self, images, codebook):
    """Images, codebook [codes, code_width] -> the nearest code at each place, [batch, h, w] int32: image tokens."""
    return nearest(self.encode(images), codebook)

  def from_codes(self, codes, codebook):
    """Codes [batch, h, w] int32, codebook [codes, code_width] -> what `decode` returns."""
    return self.decode(codebook[codes])


def nearest(vectors, codebook):
  """[..., width], [codes, width] -> the nearest code by Euclidean distance, [...] int32 (their equation 1).

  Accelerators multiply float32 with fewer digits unless told otherwise: too few for a difference of distances.
  """
  rows = vectors.reshape(-1, vectors.shape[-1])
  products = jnp.matmul(rows, codebook.T, precision='highest')
  distances = jnp.square(codebook).sum(-1) - 2 * products  # [rows, codes], less |row|^2
  return distances.argmin(-1).astype(jnp.int32).reshape(vectors.shape[:-1])


def check(config):
  """Rules across the fields of a model config. Raises UsageError."""
  check_shape(config)
