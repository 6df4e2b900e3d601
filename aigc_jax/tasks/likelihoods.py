"""Log-likelihoods of images and divergences of latents, in nats, as pure functions of arrays.

Images and what is said of them are [..., height, width, channels] float32; an image's pixels are added up: [...].
"""

import math

import jax
import jax.numpy as jnp

LEVELS = 256  # of a pixel of 8 bits


def flat(images):
  """[..., height, width, channels] -> [..., pixels]. XLA's CPU backend adds up one axis ten times as fast as three."""
  return images.reshape(*images.shape[:-3], -1)


def bernoulli_log_likelihood(logits, images):
  """log p(image) of independent pixels in [0, 1]; between 0 and 1 it is minus a cross-entropy."""
  images, logits = flat(images), flat(logits)
  return (images * logits - softplus(logits)).sum(-1)


@jax.custom_jvp
def softplus(x):
  """log(1 + exp(x)), to 1e-7. jax.nn.softplus has more digits far below 0, and takes twice as long on a CPU."""
  return jnp.maximum(x, 0) + jnp.log(1 + jnp.exp(-jnp.abs(x)))


@softplus.defjvp
def softplus_slope(primals, tangents):
  return softplus(*primals), tangents[0] * jax.nn.sigmoid(primals[0])


def gaussian_log_likelihood(mean, log_scale, images):
  """log N(image; mean, exp(log_scale)^2), a density; log_scale [channels]."""
  log_scale = flat(jnp.broadcast_to(log_scale, mean.shape[-3:]))  # [pixels]
  standard = (flat(images) - flat(mean)) * jnp.exp(-log_scale)
  return (-0.5 * jnp.square(standard) - log_scale - 0.5 * math.log(2 * math.pi)).sum(-1)


def discretized_logistic_log_likelihood(mean, log_scale, images):
  """log of what a logistic density gives each pixel's level of 256 (Salimans et al. 2017, equation 2).

  Levels lie at 0, 1/255, ... 1 and reach half a step to each side, the first and the last to infinity. With the
  ends a > b of a level, sigma(a) - sigma(b) = sigma(a) sigma(-b) (1 - exp(b - a)), which loses no digits.
  """
  step = 1 / (LEVELS - 1)
  per_scale = flat(jnp.broadcast_to(jnp.exp(-log_scale), mean.shape[-3:]))  # [pixels]
  images, mean = flat(images), flat(mean)
  upper = jax.nn.log_sigmoid((images - mean + step / 2) * per_scale)
  lower = jax.nn.log_sigmoid((mean - images + step / 2) * per_scale)
  inside = jnp.log(-jnp.expm1(-step * per_scale))
  first, last = images < step / 2, images > 1 - step / 2
  return jnp.where(first, upper, jnp.where(last, lower, upper + lower + inside)).sum(-1)


def squared_error_log_likelihood(mean, images):
  """Minus the squared error: up to a constant a Gaussian of variance 1/2."""
  return -jnp.square(flat(images) - flat(mean)).sum(-1)


def log_likelihood(kind, outputs, log_scale, images):
  """log p(image | what a decoder returned); `kind` is the model's field `likelihood`."""
  if kind == 'bernoulli':
    return bernoulli_log_likelihood(outputs, images)
  if kind == 'gaussian':
    return gaussian_log_likelihood(outputs, log_scale, images)
  if kind == 'logistic':
    return discretized_logistic_log_likelihood(outputs, log_scale, images)
  return squared_error_log_likelihood(outputs, images)


def gaussian_kl(mean, log_variance):
  """KL(N(mean, variance) || N(0, 1)) of each dimension, of the shape of `mean` (Kingma & Welling 2014, app. B)."""
  return 0.5 * (jnp.square(mean) + jnp.exp(log_variance) - log_variance - 1)


def importance_bound(key, mean, log_variance, log_likelihood_of, samples, chunk):
  """log (1/k) sum over k samples z of p(x, z) / q(z | x): a bound on log p(x) (Burda et al. 2016, equation 8).

  Args:
    key: PRNG key; sample i is drawn from fold_in(key, i), so that the chunk's size changes no number.
    mean, log_variance: [batch, latent_width], of q; the prior is N(0, 1).
    log_likelihood_of: latents [batch, latent_width] -> log p(x | z) [batch].
    samples: k.
    chunk: how many samples are decoded at once.

  Returns:
    [batch] nats, a lower bound in expectation.
  """

  def log_weight(index):
    noise = jax.random.normal(jax.random.fold_in(key, index), mean.shape)
    latents = mean + jnp.exp(0.5 * log_variance) * noise
    log_prior_over_posterior = 0.5 * (jnp.square(noise) - jnp.square(latents) + log_variance).sum(-1)
    weight = log_likelihood_of(latents) + log_prior_over_posterior  # [batch]
    return jnp.where(index < samples, weight, -jnp.inf)  # the last chunk may be too long

  def body(so_far, first):
    weights = jax.vmap(log_weight)(first + jnp.arange(chunk))  # [chunk, batch]
    return jnp.logaddexp(so_far, jax.nn.logsumexp(weights, axis=0)), None

  start = jnp.full_like(mean[:, 0], -jnp.inf)
  total, _ = jax.lax.scan(body, start, jnp.arange(0, samples, chunk))
  return total - math.log(samples)
