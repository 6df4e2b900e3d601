"""Likelihoods, divergences and bounds against PyTorch, SciPy and sums over all levels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from scipy.special import expit
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from aigc_jax.tasks import likelihoods
from aigc_jax.tasks.augmentation import dynamic_binarization

SHAPE = (4, 3, 2, 2)  # batch, height, width, channels


@pytest.fixture
def draw():
  return np.random.default_rng(0)


def test_bernoulli_is_that_of_torch(draw):
  logits, images = draw.normal(size=SHAPE) * 8, (draw.random(SHAPE) < 0.5).astype(np.float32)
  ours = likelihoods.bernoulli_log_likelihood(jnp.float32(logits), images)
  theirs = Independent(Bernoulli(logits=torch.tensor(logits)), 3).log_prob(
    torch.tensor(images, dtype=torch.double)
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)  # float32


def test_gaussian_is_that_of_torch(draw):
  mean, images, log_scale = draw.normal(size=SHAPE), draw.random(SHAPE), np.array([-1.5, 0.3])
  ours = likelihoods.gaussian_log_likelihood(*map(jnp.float32, (mean, log_scale, images)))
  theirs = Independent(Normal(torch.tensor(mean), torch.tensor(np.exp(log_scale))), 3).log_prob(
    torch.tensor(images)
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_divergence_is_that_of_torch(draw):
  mean, log_variance = draw.normal(size=(4, 5)), draw.normal(size=(4, 5))
  q = Normal(torch.tensor(mean), torch.tensor(np.exp(0.5 * log_variance)))
  ours = likelihoods.gaussian_kl(jnp.float32(mean), jnp.float32(log_variance))
  np.testing.assert_allclose(ours, kl_divergence(q, Normal(0.0, 1.0)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('log_scale', [-7.0, -3.0, 0.5])
@pytest.mark.parametrize('mean', [-0.4, 0.0, 0.5013, 1.0])
def test_discretized_logistic_gives_the_levels_all_of_the_probability(mean, log_scale):
  levels = (np.arange(256) / 255).astype(np.float32)
  logs = likelihoods.discretized_logistic_log_likelihood(
    jnp.full((256, 1, 1, 1), mean), jnp.array([log_scale]), levels[:, None, None, None]
  )
  assert np.isfinite(logs).all()
  assert np.exp(np.float64(logs)).sum() == pytest.approx(
    1, abs=1e-4
  )  # edges of levels in float32, over small scales
  scale, middle = np.exp(log_scale), 100 / 255
  exact = expit((middle + 0.5 / 255 - mean) / scale) - expit((middle - 0.5 / 255 - mean) / scale)
  if exact > 1e-12:  # where the plain difference in float64 still has its digits
    assert float(logs[100]) == pytest.approx(np.log(exact), rel=2e-4)


def bound(samples, chunk, key=0):
  draw = np.random.default_rng(1)
  mean, log_variance, weights = (jnp.float32(draw.normal(size=s)) for s in ((4, 3), (4, 3), (3, 6)))
  images = jnp.float32(draw.random((4, 6)))
  of = lambda latents: -jnp.square(latents @ weights - images).sum(-1)
  return likelihoods.importance_bound(jax.random.key(key), mean, log_variance, of, samples, chunk)


@pytest.mark.parametrize('chunk', [1, 3, 7, 16])
def test_the_chunk_changes_no_bound(chunk):
  np.testing.assert_allclose(bound(7, chunk), bound(7, 7), rtol=1e-5)  # sums in another order


def test_the_bound_is_log_of_the_mean_weight():
  """Sample by sample in float64, from the same draws."""
  singles = []
  draw = np.random.default_rng(1)
  mean, log_variance, weights = (draw.normal(size=s).astype(np.float32) for s in ((4, 3), (4, 3), (3, 6)))
  images = draw.random((4, 6)).astype(np.float32)
  for i in range(5):
    noise = np.float64(jax.random.normal(jax.random.fold_in(jax.random.key(0), i), (4, 3)))
    z = torch.tensor(mean + np.exp(0.5 * log_variance) * noise)
    prior = Independent(Normal(torch.zeros(3, dtype=torch.double), 1.0), 1).log_prob(z)
    q = Independent(
      Normal(torch.tensor(mean), torch.tensor(np.exp(0.5 * np.float64(log_variance)))), 1
    ).log_prob(z)
    singles.append(-np.square(z.numpy() @ weights - images).sum(-1) + (prior - q).numpy())
  expected = np.log(np.exp(singles).mean(0))
  np.testing.assert_allclose(bound(5, 2), expected, rtol=1e-4)


def test_softplus_and_its_slope_are_those_of_torch():
  x = np.concatenate([np.linspace(-30, 30, 61), [0.0]]).astype(np.float32)
  theirs = torch.tensor(x, requires_grad=True)
  value = torch.nn.functional.softplus(theirs, threshold=100)
  value.sum().backward()
  np.testing.assert_allclose(likelihoods.softplus(jnp.asarray(x)), value.detach(), atol=2e-7, rtol=1e-6)
  np.testing.assert_allclose(jax.vmap(jax.grad(likelihoods.softplus))(jnp.asarray(x)), theirs.grad, atol=1e-6)


def test_pixels_are_drawn_with_their_intensity_as_the_probability():
  """Odd numbers of pixels too; 0 and 255 are certain, and neighbours are drawn apart."""
  levels = np.array([0, 1, 100, 200, 254, 255, 128], np.uint8)
  images = np.broadcast_to(levels[:, None, None], (20_000, 7, 1, 1))
  drawn = np.asarray(dynamic_binarization(jax.random.key(0), images))[..., 0, 0]
  assert set(np.unique(drawn)) == {0.0, 1.0}
  assert not drawn[:, 0].any()
  assert drawn[:, 5].all()
  np.testing.assert_allclose(drawn.mean(0), levels / 255, atol=0.015)  # 4 deviations of 20,000 draws
  correlations = np.corrcoef(drawn[:, [2, 3, 6, 4]].T)[np.triu_indices(4, 1)]
  assert np.abs(correlations).max() < 0.03
