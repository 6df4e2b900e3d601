"""Parts that the models here are made of. Parameters are float32; the work is done in each part's `dtype`.

Float fields (a dropout rate, an epsilon, a deviation) may be traced: nothing here looks at their value.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def normal(deviation):
  """Initializer: centred normal noise of a standard deviation that may be traced."""
  return lambda key, shape, dtype=jnp.float32: deviation * jax.random.normal(key, shape, dtype)


def matmul(x, kernel):
  """x [..., inputs] @ kernel [inputs, outputs], as one product of matrices.

  A gradient that contracts batch and time as two axes makes XLA's CPU backend transpose what it multiplies, and
  work out again whatever element-wise code made it: a quarter of a training step.
  """
  rows = x.reshape(-1, x.shape[-1])
  return (rows @ kernel.astype(x.dtype)).reshape(*x.shape[:-1], kernel.shape[1])


class Dense(nn.Module):
  """x [..., *inputs] -> x . kernel + bias [..., *features].

  The kernel is [*inputs, *features]; the bias is flat, since optimizers tell vectors from matrices by their axes.
  """

  features: int | tuple[int, ...]
  bias: bool
  deviation: Any  # of the initial kernel
  dtype: Any = jnp.float32
  input_axes: int = 1  # how many axes at the end of x are inputs

  @nn.compact
  def __call__(self, x):
    features = (self.features,) if isinstance(self.features, int) else self.features
    rows, inputs = x.shape[: -self.input_axes], x.shape[-self.input_axes :]
    kernel = self.param('kernel', normal(self.deviation), (*inputs, *features))
    y = matmul(x.astype(self.dtype).reshape(*rows, -1), kernel.reshape(math.prod(inputs), -1))
    if self.bias:
      y = y + self.param('bias', nn.initializers.zeros, (math.prod(features),)).astype(self.dtype)
    return y.reshape(*rows, *features)


class Dropout(nn.Module):
  """Zeroes a fraction `rate` and scales up the rest (Srivastava et al. 2014); None: does nothing."""

  rate: Any = None

  @nn.compact
  def __call__(self, x, train):
    if self.rate is None or not train:
      return x
    keep = 1 - self.rate
    kept = jax.random.uniform(self.make_rng('dropout'), x.shape) < keep
    return jnp.where(kept, x / jnp.asarray(keep, x.dtype), 0)


class Norm(nn.Module):
  """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang & Sennrich 2019) over the last axis, in float32."""

  kind: str
  epsilon: Any
  bias: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    x = x.astype(jnp.float32)
    if self.kind == 'layer_norm':
      x = x - x.mean(-1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.epsilon)
    x = x * self.param('scale', nn.initializers.ones, (x.shape[-1],))
    if self.bias and self.kind == 'layer_norm':
      x = x + self.param('bias', nn.initializers.zeros, (x.shape[-1],))
    return x.astype(self.dtype)


@jax.custom_jvp
def gelu(x):
  """x Phi(x) (Hendrycks & Gimpel 2016, section 2). jax.nn.gelu takes erfc, twice as slow on a CPU."""
  return x * normal_cumulative(x)


@gelu.defjvp
def gelu_slope(primals, tangents):
  """Phi(x) + x phi(x), written out: JAX 0.12 cannot take the slope of erf inside shard_map."""
  (x,), (change,) = primals, tangents
  cumulative, x32 = normal_cumulative(x), x.astype(jnp.float32)
  density = jnp.exp(-0.5 * x32 * x32) * (1 / math.sqrt(2 * math.pi))
  return x * cumulative, change * (cumulative + (x32 * density).astype(x.dtype))


def normal_cumulative(x):
  """Phi, the probability that a standard normal number is below x; the error function in float32."""
  return 0.5 * (1 + jax.lax.erf(x.astype(jnp.float32) * math.sqrt(0.5)).astype(x.dtype))


ACTIVATIONS = {
  'gelu': gelu,
  'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),  # the same paper's approximation by tanh
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
  'relu2': lambda x: jnp.square(jax.nn.relu(x)),  # So et al. 2021 (Primer)
}


class FeedForward(nn.Module):
  """[..., width] -> [..., width] through `hidden` units; 'swiglu' is gated (Shazeer 2020, eq. 6)."""

  hidden: int
  activation: str
  bias: bool
  deviation: Any
  output_deviation: Any
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    width = x.shape[-1]
    h = Dense(self.hidden, self.bias, self.deviation, self.dtype, name='up')(x)
    if self.activation == 'swiglu':
      gate = Dense(self.hidden, self.bias, self.deviation, self.dtype, name='gate')(x)
      h = jax.nn.silu(gate) * h
    else:
      h = ACTIVATIONS[self.activation](h)
    return Dense(width, self.bias, self.output_deviation, self.dtype, name='down')(h)
