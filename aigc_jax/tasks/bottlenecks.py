"""What lies between an encoder and a decoder: nothing, a Gaussian posterior, or a codebook.

Each is a pure function that returns a `Coded`; its cost, in nats, is added to the reconstruction's.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax.models.vq_autoencoder import nearest
from aigc_jax.tasks.likelihoods import gaussian_kl


class Coded(NamedTuple):
  latents: Any  # [batch, ...]: what the decoder reads
  cost: Any  # [batch] nats
  metrics: dict  # {name: [batch]}
  extra: Any  # with the codebook's new averages


def plain(encoded, extra):
  """The latent as it is."""
  latents, _ = encoded
  return Coded(latents, jnp.zeros(len(latents)), {}, extra)


def gaussian(task, encoded, extra, noise, context):
  """A draw from N(mean, variance), which costs its divergence from N(0, 1).

  Free bits (Kingma et al. 2016, equation 15) let each dimension's divergence cost no less than `free_bits`, for
  each image, where the paper takes the mean of a minibatch: so the loss stays a sum over rows.

  Args:
    task: `config.task`.
    encoded: (mean, log_variance), each [batch, latent_width].
    noise: standard normal, [batch, latent_width].
  """
  mean, log_variance = encoded
  divergence = gaussian_kl(mean, log_variance)  # [batch, latent_width]
  charged = divergence if task['free_bits'] is None else jnp.maximum(divergence, task['free_bits'])
  factor = task['beta']
  if task['kl_warmup_steps'] is not None and context.train:
    factor = factor * jnp.minimum(1.0, context.step / task['kl_warmup_steps'])
  latents = mean + jnp.exp(0.5 * log_variance) * noise
  return Coded(latents, factor * charged.sum(-1), {'kl': divergence.sum(-1)}, extra)


def quantized(task, vectors, codebook, extra, mask, context):
  """The nearest code of each vector, with the decoder's gradient handed straight through to the vector.

  The vectors are drawn to their codes by `commitment` (van den Oord et al. 2017, equation 3). The codes follow by
  gradient, or, where `extra` holds them, by moving averages.

  Args:
    task: `config.task`.
    vectors: [batch, h, w, code_width].
    codebook: [codes, code_width].
    extra: {} for a codebook that has gradients, else as `moved` has it.
    mask: [batch], 0 for rows that are padding.
  """
  codes = nearest(jax.lax.stop_gradient(vectors), jax.lax.stop_gradient(codebook))  # [batch, h, w]
  chosen = codebook[codes]  # [batch, h, w, code_width]
  places = (1, 2, 3)
  cost = task['commitment'] * jnp.square(vectors - jax.lax.stop_gradient(chosen)).sum(places)
  if not extra:
    cost = cost + jnp.square(jax.lax.stop_gradient(vectors) - chosen).sum(places)
  latents = vectors + jax.lax.stop_gradient(chosen - vectors)
  metrics = {}
  if context.train:
    rows, weights = flat(jax.lax.stop_gradient(vectors), mask)
    members = jax.nn.one_hot(codes.reshape(-1), len(codebook)) * weights[:, None]  # [places, codes]
    counts = context.sum(members.sum(0))  # [codes]
    metrics['codebook_perplexity'] = jnp.full_like(mask, perplexity(counts))
    if extra:
      sums = jnp.matmul(members.T, rows, precision='highest')  # [codes, code_width], in float32 everywhere
      extra = moved(task, extra, counts, context.sum(sums), rows, weights, context)
  return Coded(latents, cost, metrics, extra)


def flat(vectors, mask):
  """Vectors [batch, h, w, width] -> [places, width] and the weight of each [places]."""
  batch, h, w, width = vectors.shape
  return vectors.reshape(-1, width), jnp.repeat(mask, h * w, total_repeat_length=batch * h * w)


def perplexity(counts):
  """exp of the entropy of how often each code is used, [codes] -> ()."""
  share = counts / jnp.maximum(counts.sum(), 1.0)
  return jnp.exp(-(share * jnp.log(jnp.maximum(share, 1e-30))).sum())


def moved(task, extra, counts, sums, rows, weights, context):
  """`extra` after a batch: moving averages (van den Oord et al. 2017, appendix A.1), then dead codes seeded anew.

  `extra` holds 'codes' [codes, width], the means, and 'counts' [codes], their averaged numbers of members; their
  product is the averaged sum of the members. A code whose count is below `revive_below` of the even share becomes
  a random vector of the batch, with the even share as its count.

  Args:
    counts, sums: [codes], [codes, width] of the batch over all devices.
    rows, weights: [places, width], [places]: this device's vectors.
  """
  decay = task['codebook_decay']
  new_counts = decay * extra['counts'] + (1 - decay) * counts
  new_sums = decay * extra['counts'][:, None] * extra['codes'] + (1 - decay) * sums
  # A code without members stays where it is, to the last bit, however small its count becomes.
  codes = jnp.where(counts[:, None] > 0, new_sums / jnp.maximum(new_counts, 1e-30)[:, None], extra['codes'])
  if task['revive_below'] is not None:
    share = new_counts.sum() / len(counts)
    dead = new_counts < task['revive_below'] * share
    key = jax.random.fold_in(jax.random.wrap_key_data(extra['seed']), context.step)
    seeds = choose(key, context.gather(rows), context.gather(weights), len(counts))
    codes = jnp.where(dead[:, None], agreed(context, seeds), codes)
    new_counts = jnp.where(dead, share, new_counts)
  found = counts.sum() > 0  # a batch of weight 0 changes nothing
  new = {
    'codes': jnp.where(found, codes, extra['codes']),
    'counts': jnp.where(found, new_counts, extra['counts']),
  }
  return extra | new


def choose(key, rows, weights, number):
  """`number` of the rows [places, width] whose weight is above 0, at random, each once while there are enough."""
  scores = jnp.where(weights > 0, jax.random.uniform(key, weights.shape), -1.0)
  _, places = jax.lax.top_k(scores, min(number, len(scores)))
  usable = jnp.clip((weights > 0).sum(), 1, len(places))
  return rows[places[jnp.arange(number) % usable]]


def agreed(context, array):
  """An array that every device has worked out alike, marked as the same everywhere."""
  if not context.axis:
    return array
  return context.sum(jnp.where(jax.lax.axis_index(context.axis) == 0, array, 0))
