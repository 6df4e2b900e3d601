"""The codebook against a plain loop, its gradient, the revival of dead codes, and free bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.models.vq_autoencoder import nearest
from aigc_jax.task import Context
from aigc_jax.tasks import bottlenecks

TASK = {'commitment': 0.25, 'codebook_decay': 0.9, 'revive_below': None, 'beta': 2.0, 'free_bits': None,
        'kl_warmup_steps': None}  # fmt: skip
MASK = jnp.array([1.0, 1, 1, 0])


def vectors(seed=0):
  return jnp.float32(np.random.default_rng(seed).normal(size=(4, 2, 3, 5)))  # the last row is padding


def book(codes=6, seed=9):
  values = np.random.default_rng(seed).normal(size=(codes, 5))
  return {
    'codes': jnp.float32(values),
    'counts': jnp.full(codes, 3.0),
    'seed': jax.random.key_data(jax.random.key(1)),
  }


def context(step=0, train=True):
  return Context(jax.random.key(0), jnp.int32(step), train)


def squeeze(extra, x, mask=MASK, step=0, **task):
  return bottlenecks.quantized(TASK | task, x, extra['codes'], extra, mask, context(step))


def test_the_nearest_code_is_that_of_all_distances():
  x, codes = np.asarray(vectors()), np.asarray(book()['codes'])
  expected = np.square(x[..., None, :] - codes).sum(-1).argmin(-1)
  np.testing.assert_array_equal(nearest(jnp.asarray(x), jnp.asarray(codes)), expected)


def test_moving_averages_are_those_of_a_plain_loop():
  extra = book()
  counts, sums = np.full(6, 3.0), np.asarray(extra['codes'], np.float64) * 3
  for step in range(4):
    x, codes = np.asarray(vectors(step), np.float64), sums / counts[:, None]
    members = [[] for _ in codes]
    for row in x[:3].reshape(-1, 5):
      members[np.square(row - codes).sum(-1).argmin()].append(row)
    for i, found in enumerate(members):
      counts[i] = 0.9 * counts[i] + 0.1 * len(found)
      sums[i] = 0.9 * sums[i] + 0.1 * np.sum(found, axis=0, initial=0.0)
    extra = squeeze(extra, vectors(step)).extra
    np.testing.assert_allclose(extra['counts'], counts, rtol=1e-5)
    np.testing.assert_allclose(extra['codes'], sums / counts[:, None], rtol=1e-4, atol=1e-6)


def test_the_gradient_goes_straight_through_and_commitment_adds_its_own():
  extra, x = book(), vectors()
  pull = jnp.float32(np.random.default_rng(5).normal(size=x.shape))
  through = jax.grad(lambda x: (squeeze(extra, x).latents * pull).sum())(x)
  np.testing.assert_array_equal(through, pull)
  chosen = extra['codes'][nearest(x, extra['codes'])]
  np.testing.assert_allclose(squeeze(extra, x).latents, chosen, atol=1e-6)
  cost = jax.grad(lambda x: squeeze(extra, x).cost.sum())(x)
  np.testing.assert_allclose(cost, 2 * 0.25 * (x - chosen), rtol=1e-5, atol=1e-6)


def test_a_codebook_with_gradients_moves_to_its_members():
  codes, x = book()['codes'], vectors()
  cost = lambda codes: bottlenecks.quantized(TASK, x, codes, {}, MASK, context()).cost[:3].sum()
  rows, owners = np.asarray(x[:3]).reshape(-1, 5), np.asarray(nearest(x[:3], codes)).reshape(-1)
  expected = [2 * (np.asarray(codes[i]) * (owners == i).sum() - rows[owners == i].sum(0)) for i in range(6)]
  np.testing.assert_allclose(jax.grad(cost)(codes), expected, rtol=1e-4, atol=1e-5)


def test_a_dead_code_becomes_a_vector_of_the_batch_that_is_no_padding():
  extra = book()
  extra['codes'] = extra['codes'].at[2].set(100.0)
  extra['counts'] = extra['counts'].at[2].set(1e-3)
  after = squeeze(extra, vectors(), revive_below=0.1).extra
  rows = np.asarray(vectors())[:3].reshape(-1, 5)
  assert np.abs(rows - np.asarray(after['codes'][2])).sum(-1).min() == 0
  assert after['counts'][2] == pytest.approx(
    float(squeeze(extra, vectors()).extra['counts'].sum() / 6), rel=1e-5
  )
  untouched = squeeze(extra, vectors()).extra
  keep = np.arange(6) != 2
  np.testing.assert_array_equal(after['codes'][keep], untouched['codes'][keep])
  np.testing.assert_array_equal(untouched['codes'][2], extra['codes'][2])
  other = squeeze(extra, vectors(), revive_below=0.1, step=1).extra
  assert not np.array_equal(other['codes'][2], after['codes'][2]), 'another step draws another vector'


def test_seeds_come_once_each_and_never_from_padding():
  rows = jnp.arange(12.0)[:, None]
  weights = (jnp.arange(12) < 7).astype(jnp.float32)
  chosen = np.asarray(bottlenecks.choose(jax.random.key(0), rows, weights, 7))[:, 0]
  assert sorted(chosen) == list(range(7))
  more = np.asarray(bottlenecks.choose(jax.random.key(0), rows, weights, 20))[:, 0]
  assert set(more) == set(range(7))


def test_a_batch_of_weight_0_leaves_the_codebook_as_it_was():
  extra = book()
  after = squeeze(extra, vectors(), 0 * MASK, revive_below=0.9).extra
  jax.tree.map(np.testing.assert_array_equal, after, extra)


def test_free_bits_are_charged_for_each_dimension():
  mean, log_variance = jnp.array([[0.1, 3.0]]), jnp.zeros((1, 2))
  of = lambda **task: bottlenecks.gaussian(
    TASK | task, (mean, log_variance), {}, jnp.zeros((1, 2)), context(3)
  )
  assert float(of().cost[0]) == pytest.approx(2 * (0.005 + 4.5))
  assert float(of(free_bits=0.5).cost[0]) == pytest.approx(2 * (0.5 + 4.5))
  assert float(of(free_bits=0.5).metrics['kl'][0]) == pytest.approx(4.505), (
    'the metric is the divergence itself'
  )
  assert float(of(kl_warmup_steps=12.0).cost[0]) == pytest.approx(2 * 0.25 * 4.505)


def test_codes_are_found_and_moved_with_all_digits_of_float32():
  """Accelerators multiply matrices with fewer, unless they are told."""
  lowered = jax.jit(lambda x: squeeze(book(), x).extra).lower(vectors()).as_text()
  products = [line for line in lowered.splitlines() if 'dot_general' in line]
  assert len(products) == 2
  assert all('HIGHEST' in line for line in products)
