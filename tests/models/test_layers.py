"""Activations, normalization and dropout against their definitions; gradients of a product against the plain one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from aigc_jax.models import layers
from aigc_jax.models.attention import masked_softmax

X = np.linspace(-6, 6, 97, dtype=np.float32)
TORCH = {
  'gelu': torch.nn.functional.gelu,
  'gelu_tanh': lambda x: torch.nn.functional.gelu(x, approximate='tanh'),
  'relu': torch.relu,
  'relu2': lambda x: torch.relu(x) ** 2,
  'silu': torch.nn.functional.silu,
}


@pytest.mark.parametrize('name', layers.ACTIVATIONS)
def test_activations_and_their_slopes_are_pytorchs(name):
  x = torch.tensor(X, requires_grad=True)
  y = TORCH[name](x)
  y.sum().backward()
  ours, slope = jax.jit(jax.vmap(jax.value_and_grad(layers.ACTIVATIONS[name])))(X)
  np.testing.assert_allclose(
    ours, y.detach(), rtol=1e-5, atol=2e-6
  )  # erf of two libraries differs in the last bits
  np.testing.assert_allclose(slope, x.grad, rtol=1e-5, atol=1e-5)  # tanh saturates sooner in one library


def test_matmul_has_the_gradients_of_the_plain_product():
  keys = jax.random.split(jax.random.key(0), 3)
  x, kernel = jax.random.normal(keys[0], (2, 3, 5)), jax.random.normal(keys[1], (5, 4))
  weight = jax.random.normal(keys[2], (2, 3, 4))
  gradients = lambda product: jax.grad(lambda x, k: (product(x, k) * weight).sum(), argnums=(0, 1))(x, kernel)
  for ours, plain in zip(gradients(layers.matmul), gradients(jnp.matmul), strict=True):
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5)


def test_masked_softmax_has_the_gradients_of_the_plain_one():
  keys = jax.random.split(jax.random.key(0), 2)
  scores, weight = jax.random.normal(keys[0], (3, 5, 6)), jax.random.normal(keys[1], (3, 5, 6))
  mask = jnp.arange(6) <= jnp.arange(5)[:, None]
  plain = lambda s: jax.nn.softmax(jnp.where(mask, s, -jnp.inf), axis=-1)
  for ours, theirs in [
    (masked_softmax(scores, mask), plain(scores)),
    (
      jax.grad(lambda s: (masked_softmax(s, mask) * weight).sum())(scores),
      jax.grad(lambda s: (plain(s) * weight).sum())(scores),
    ),
  ]:
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(masked_softmax(scores, jnp.zeros(6, bool)), 1 / 6, rtol=1e-6)


@pytest.mark.parametrize('rate', [0.0, 0.3, 0.9])
def test_dropout_keeps_the_mean_and_acts_in_training_only(rate):
  x, dropout = jnp.ones(40_000), layers.Dropout(jnp.float32(rate))
  np.testing.assert_array_equal(dropout.apply({}, x, False), x)
  y = np.asarray(dropout.apply({}, x, True, rngs={'dropout': jax.random.key(0)}))
  five_deviations = 5 * np.sqrt(rate * (1 - rate) / x.size) + 1e-6
  assert abs((y == 0).mean() - rate) < five_deviations
  np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize('kind', ['layer_norm', 'rms_norm'])
def test_norms_are_pytorchs(kind):
  x = np.random.default_rng(0).normal(3, 2, (4, 8)).astype(np.float32)
  norm = layers.Norm(kind, 1e-5, bias=True)
  ours = norm.apply(norm.init(jax.random.key(0), x), x)
  theirs = getattr(torch.nn.functional, kind)(torch.tensor(x), (8,), eps=1e-5)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
