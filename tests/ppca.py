"""The linear Gaussian autoencoder, whose log-likelihood is known: probabilistic PCA (Tipping & Bishop 1999).

x = W z + mu + sigma e has log p(x) = log N(x; mu, W W' + sigma^2 I). W has orthogonal columns here, so that the
posterior is diagonal, as the encoder's is. `python -m tests.ppca` prints the bounds beside the exact number.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import multivariate_normal

from aigc_jax import tasks
from aigc_jax.task import Context
from aigc_jax.tasks import autoencoding
from aigc_jax.tasks.likelihoods import gaussian_kl
from tests import images as experiments

SHAPE, WIDTH, SIGMA, ROWS = (4, 4, 1), 3, 0.3, 16
SAMPLES = (1, 10, 100, 1000, 5000)


@functools.cache
def problem():
  """(W [pixels, latents], mu [pixels], images [rows, pixels]) in float64, drawn from the model itself."""
  draw = np.random.default_rng(0)
  w = np.linalg.qr(draw.normal(size=(16, WIDTH)))[0] * [2.0, 1.0, 0.5]
  mu = draw.normal(size=16)
  return w, mu, draw.normal(size=(ROWS, WIDTH)) @ w.T + mu + SIGMA * draw.normal(size=(ROWS, 16))


def exact():
  """log p of each image, [rows]."""
  w, mu, images = problem()
  return multivariate_normal(mu, w @ w.T + SIGMA**2 * np.eye(16)).logpdf(images)


def parameters(shift=0.0, widen=1.0):
  """The decoder of the problem; the encoder is its posterior, moved by `shift` and its deviations by `widen`."""
  w, mu, _ = problem()
  precision = np.square(w).sum(0) + SIGMA**2  # M, which is diagonal
  to_mean = w / precision
  kernel = np.concatenate([to_mean, np.zeros((16, WIDTH))], 1)
  log_variance = np.log(SIGMA**2 / precision) + 2 * np.log(widen)
  bias = np.concatenate([shift - mu @ to_mean, log_variance])
  params = {
    'encoder': {'moments': {'kernel': kernel, 'bias': bias}},
    'decoder': {'images': {'kernel': w.T, 'bias': mu}},
    'log_scale': np.log([SIGMA]),
  }
  return jax.tree.map(jnp.float32, params)


def config(samples=None, **task):
  model = {'widths': (), 'latent_width': WIDTH, 'likelihood': 'gaussian'}
  return experiments.config(
    model, SHAPE, task={'importance_samples': samples, 'importance_chunk': 500} | task
  )


def batch():
  _, _, images = problem()
  shaped = np.float32(images).reshape(ROWS, *SHAPE)
  return {'images': shaped, 'labels': np.zeros(ROWS, np.int32), 'mask': np.ones(ROWS, np.float32)}


@functools.cache
def evaluator(samples):
  return jax.jit(
    lambda params, key: tasks.build(config(samples)).evaluate(
      params, {}, batch(), Context(key, jnp.int32(0), False)
    )
  )


def bounds(params, samples, key=0):
  """(ELBO, importance bound of `samples`): means over the images, as the task's evaluation has them."""
  found = evaluator(samples)(params, jax.random.key(key))
  return tuple(float(found[name][0] / found[name][1]) for name in ('elbo', 'importance_bound'))


def expected_elbo(params):
  """The ELBO of each image, [rows], in expectation over the latent's noise, without any error of sampling.

  It is quadratic in the noise, so that its mean over 2 * latents points at plus and minus sqrt(latents) is exact.
  """
  parts, given = autoencoding.make_parts(config()), batch()
  points = np.sqrt(WIDTH) * np.concatenate([np.eye(WIDTH), -np.eye(WIDTH)])
  mean, log_variance = parts.encode(params, given['images'], given['labels'])

  def nats(point):
    latents = mean + jnp.exp(0.5 * log_variance) * point
    return autoencoding.reconstruction_nats(parts, params, latents, given)

  return -jax.vmap(nats)(jnp.float32(points)).mean(0) - gaussian_kl(mean, log_variance).sum(-1)


def main():
  truth, good, wrong = exact(), parameters(), parameters(0.3, 1.5)
  print(f'mean over {ROWS} images, in nats\nexact log p(x)              {truth.mean():.5f}')
  print(f'exact posterior: ELBO       {float(expected_elbo(good).mean()):.5f}')
  found = {k: bounds(good, k)[1] for k in SAMPLES}
  for k, value in found.items():
    print(f'  bound of {k:>5} samples     {value:.5f}')
  differences = [*np.abs(expected_elbo(good) - truth), *np.abs(np.array([*found.values()]) - truth.mean())]
  print(f'  largest difference        {max(differences):.1e}')
  print(f'wrong posterior: ELBO       {float(expected_elbo(wrong).mean()):.5f}')
  for k in SAMPLES:
    print(f'  bound of {k:>5} samples     {np.mean([bounds(wrong, k, key)[1] for key in range(10)]):.5f}')


if __name__ == '__main__':
  main()
