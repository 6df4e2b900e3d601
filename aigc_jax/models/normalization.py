"""Batch normalization (Ioffe & Szegedy 2015) whose statistics are masked sums over all devices."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
  """x [batch, ..., features] -> the same, each feature normalized over batch and places, scaled and shifted.

  Running statistics are the collection 'batch_stats': 'mean' and 'variance' [features]. Training moves them by
  1 - decay towards those of the batch, and evaluation normalizes with them. As in PyTorch, the variance of the batch
  divides by the count, the one that is kept by the count less one.
  """

  decay: Any  # of the running statistics; PyTorch's momentum is 1 - decay
  epsilon: Any
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, mask=None, train=False, sum: Callable = lambda tree: tree):
    """Args: mask: [batch] float32, which rows count; None: all. sum: adds a tree over the devices (`Context.sum`)."""
    x, features = x.astype(jnp.float32), (x.shape[-1],)
    scale = self.param('scale', nn.initializers.ones, features)
    bias = self.param('bias', nn.initializers.zeros, features)
    mean = self.variable('batch_stats', 'mean', jnp.zeros, features)
    variance = self.variable('batch_stats', 'variance', jnp.ones, features)
    if not train:
      centre, spread = mean.value, variance.value
    else:
      weights = jnp.ones(len(x)) if mask is None else mask
      batch_mean, batch_variance, count = statistics(x, weights, sum)
      unbiased = batch_variance * count / jnp.maximum(count - 1, 1)
      # without a row that counts there is nothing to go by but what was
      centre = jnp.where(count > 0, batch_mean, mean.value)
      spread = jnp.where(count > 0, batch_variance, variance.value)
      for held, new in ((mean, batch_mean), (variance, unbiased)):
        moved = self.decay * held.value + (1 - self.decay) * jax.lax.stop_gradient(new)
        held.value = jnp.where(count > 0, moved, held.value)
    factor = scale * jax.lax.rsqrt(spread + self.epsilon)
    return ((x - centre) * factor + bias).astype(self.dtype)


def statistics(x, weights, sum):
  """(mean [features], variance [features], count ()) of x [batch, ..., features], rows counting as weights [batch].

  The variance is that of the differences from the mean, since the difference of two large sums has few digits.
  """
  axes = tuple(range(x.ndim - 1))
  weights = weights.reshape(-1, *(1,) * (x.ndim - 1))  # [batch, 1, ..., 1]
  places = math.prod(x.shape[1:-1])
  added, count = sum(((x * weights).sum(axes), weights.sum() * places))
  mean = added / jnp.maximum(count, 1)
  variance = sum((jnp.square(x - mean) * weights).sum(axes)) / jnp.maximum(count, 1)
  return mean, variance, count
