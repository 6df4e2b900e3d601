"""Autoencoding: give an image back through a narrow latent: plain, variational, or a grid of codes."""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import models
from aigc_jax.config import Fraction, NonNegative, Positive, UnitInterval
from aigc_jax.errors import UsageError, listed
from aigc_jax.task import Task
from aigc_jax.tasks import autoencoding_pictures, bottlenecks
from aigc_jax.tasks.augmentation import dynamic_binarization
from aigc_jax.tasks.images import as_floats, gather, shape_of
from aigc_jax.tasks.likelihoods import gaussian_kl, importance_bound, log_likelihood

HIGHER_IS_BETTER = (
  'elbo',
  'importance_bound',
  'active_units',
  'codebook_perplexity',
  'codes_used',
)  # metrics

MODELS = ('autoencoder', 'vq_autoencoder')
ACTIVE = 0.01  # variance of a latent's posterior mean over the images (Burda et al. 2016, section 5.2)


@dataclasses.dataclass(frozen=True)
class AutoencodingConfig:
  beta: Annotated[float, NonNegative] = 1.0  # weight of the divergence from the prior (Higgins et al. 2017)
  free_bits: Annotated[float, NonNegative] | None = (
    None  # nats that each latent may carry at no gain (Kingma 2016)
  )
  kl_warmup_steps: Annotated[float, Positive] | None = (
    None  # steps in which beta rises from 0 (Bowman et al. 2016)
  )
  corruption: Literal['gaussian', 'masking'] = 'gaussian'  # of what the encoder sees (Vincent et al. 2008)
  noise: Annotated[float, NonNegative] | None = (
    None  # its standard deviation, or the fraction of masked pixels
  )
  commitment: Annotated[float, NonNegative] = 0.25  # codes: how strongly the encoder keeps to them
  codebook_decay: Annotated[float, Fraction] = 0.99  # codes by moving averages
  revive_below: Annotated[float, UnitInterval] | None = (
    0.01  # of the even share; ema: below it a code starts anew
  )
  importance_samples: Annotated[int, Positive] | None = None  # evaluation: of the bound on log p(x)
  importance_chunk: Annotated[int, Positive] = 50  # of these, how many at once
  shown_images: Annotated[int, Positive] = 16  # of the validation split, given back while training


class Parts(NamedTuple):
  """What the functions of the task share."""

  task: dict
  model: dict
  encode: Callable  # params, images, labels -> what the bottleneck reads
  decode: Callable  # params, latents, labels -> (outputs, log_scale)
  quantizes: bool
  gaussian: bool


def complete(config, dataset):
  """Fills in what the data decides: the image's shape and the number of classes. Raises UsageError on clashes."""
  name, facts, model = config['model']['name'], dataset.facts, dict(config['model'])
  if name not in MODELS:
    raise UsageError(
      f'config.model.name: {name!r} is no autoencoder; the task autoencoding takes {listed(MODELS)}'
    )
  if 'image_shape' not in facts:
    raise UsageError(
      f'config.data.source: {config["data"]["source"]!r} has no images, which the task autoencoding takes; '
      'try bundled:fashion_mnist_5k'
    )
  model |= shape_of(model, dataset, config['data']['source'])
  if model.get('conditional'):
    model['classes'] = model['classes'] or facts['classes']
    if not 2 <= facts['classes'] <= model['classes']:
      raise UsageError(
        f'config.model.conditional: the data has {facts["classes"]} classes and config.model.classes is '
        f'{model["classes"]}; it takes 2 classes or more, all of them counted'
      )
  check(config, model)
  return config | {'model': model}


def check(config, model):
  """Rules across task, model and data. Raises UsageError."""
  task, binarized = config['task'], config['data'].get('binarization')
  if model['likelihood'] == 'logistic' and binarized is not None:
    raise UsageError(
      f"config.model.likelihood: 'logistic' is of 256 levels, and config.data.binarization={binarized} leaves two; "
      "use 'bernoulli', or binarization none"
    )
  if task['importance_samples'] is not None and model.get('posterior') != 'gaussian':
    raise UsageError(
      f'config.task.importance_samples: {task["importance_samples"]}, but only a Gaussian posterior has this bound; '
      'use none, or the model autoencoder with posterior=gaussian'
    )
  if task['corruption'] == 'masking' and task['noise'] is not None and task['noise'] > 1:
    raise UsageError(
      f'config.task.noise: {task["noise"]} is no fraction of masked pixels; it takes a float in [0, 1]'
    )


def make_parts(config):
  model = models.build(config['model'], jnp.dtype(config['training']['precision']))
  apply = lambda method: lambda params, *arrays: model.apply({'params': params}, *arrays, method=method)
  posterior = config['model'].get('posterior')
  return Parts(
    config['task'],
    config['model'],
    apply('encode'),
    apply('decode'),
    posterior is None,
    posterior == 'gaussian',
  )


def build(config):
  """A Task from a resolved config whose floats may be traced. Batches are those of image data."""
  parts = make_parts(config)
  pictures = make_pictures(parts)  # compiled once, at the first picture
  return Task(
    init=partial(init, config),
    loss=partial(loss, parts),
    collect=partial(collect, parts, config['data'].get('binarization') == 'dynamic'),
    evaluate=partial(evaluate, parts),
    report=partial(report, parts, config['data'].get('binarization') is not None),
    show=partial(autoencoding_pictures.show, pictures),
    draw=partial(autoencoding_pictures.draw, pictures)
    if parts.gaussian
    else None,  # nothing else has a prior
    unit='images',
    higher_is_better=HIGHER_IS_BETTER,
  )


def init(config, key, batch):
  """Parameters, and for codes the codebook: vectors that the new encoder makes of the first batch."""
  model_key, code_key, seed_key = jax.random.split(key, 3)
  batch, model = gather(batch), models.build(config['model'])
  images = as_floats(batch['images'])
  params = model.init(model_key, images[:1], batch['labels'][:1])['params']
  if config['model']['name'] != 'vq_autoencoder':
    return params, {}
  vectors = model.apply({'params': params}, images, method='encode')
  size = config['model']['codebook_size']
  codes = bottlenecks.choose(code_key, *bottlenecks.flat(vectors, batch['mask']), size)
  if config['model']['codebook'] == 'gradient':
    return params | {'codebook': codes}, {}
  counts = jnp.full(size, vectors[..., 0].size / size)  # the even share
  return params, {'codes': codes, 'counts': counts, 'seed': jax.random.key_data(seed_key)}


def codebook(params, extra):
  """The codes [codes, width] of a quantizing model."""
  return extra['codes'] if extra else params['codebook']


def collect(parts, binarizes, params, extra, batch, context):
  """Draws all the noise of a step: binary pixels, what corrupts the input, and the latent's."""
  del params
  batch = gather(batch)
  pixel_key, input_key, latent_key = jax.random.split(context.key, 3)
  if binarizes:
    batch = batch | {'images': dynamic_binarization(pixel_key, batch['images'])}
  if parts.task['noise'] is not None:
    batch = batch | {'inputs': corrupt(parts.task, input_key, as_floats(batch['images']))}
  if parts.gaussian:
    batch = batch | {'latent_noise': latent_noise(parts, latent_key, batch)}
  return extra, batch


def latent_noise(parts, key, batch):
  return jax.random.normal(key, (len(batch['mask']), parts.model['latent_width']))


def corrupt(task, key, images):
  """Images [batch, height, width, channels] with noise added, or a fraction of their pixels set to 0."""
  if task['corruption'] == 'gaussian':
    return images + task['noise'] * jax.random.normal(key, images.shape)
  kept = jax.random.uniform(key, images.shape[:3]) >= task['noise']
  return images * kept[..., None]


def squeeze(parts, params, extra, inputs, batch, noise, context):
  """Encodes `inputs` and passes the bottleneck: a Coded."""
  encoded = parts.encode(params, inputs, batch['labels'])
  if parts.quantizes:
    return bottlenecks.quantized(parts.task, encoded, codebook(params, extra), extra, batch['mask'], context)
  if parts.gaussian:
    return bottlenecks.gaussian(parts.task, encoded, extra, noise, context)
  return bottlenecks.plain(encoded, extra)


def reconstruction_nats(parts, params, latents, batch):
  """-log p(image | latents), [batch]."""
  outputs, log_scale = parts.decode(params, latents, batch['labels'])
  return -log_likelihood(parts.model['likelihood'], outputs, log_scale, as_floats(batch['images']))


def loss(parts, params, extra, batch, context):
  """Reconstruction plus the bottleneck's cost, in nats, of a batch from `collect`."""
  inputs = batch['inputs'] if 'inputs' in batch else as_floats(batch['images'])
  coded = squeeze(parts, params, extra, inputs, batch, batch.get('latent_noise'), context)
  nats = reconstruction_nats(parts, params, coded.latents, batch)
  mask, weight = batch['mask'], batch['mask'].sum()
  metrics = {'reconstruction': nats} | coded.metrics
  metrics = {name: ((values * mask).sum(), weight) for name, values in metrics.items()}
  return ((nats + coded.cost) * mask).sum(), (weight, coded.extra, metrics)


def evaluate(parts, params, extra, batch, context):
  """Sums over a validation batch; the loss is that of training with the whole beta, all else is of clean images."""
  latent_key, input_key, bound_key = jax.random.split(context.key, 3)
  images, mask = as_floats(batch['images']), batch['mask']
  noise = latent_noise(parts, latent_key, batch) if parts.gaussian else None
  coded = squeeze(parts, params, extra, images, batch, noise, context)
  nats = reconstruction_nats(parts, params, coded.latents, batch)
  found = {'loss': nats + coded.cost, 'reconstruction': nats} | coded.metrics
  if parts.task['noise'] is not None:
    noisy = corrupt(parts.task, input_key, images)
    again = squeeze(parts, params, extra, noisy, batch, noise, context)
    found['loss'] = reconstruction_nats(parts, params, again.latents, batch) + again.cost
  if parts.gaussian:
    mean, log_variance = parts.encode(params, images, batch['labels'])
    found['elbo'] = -nats - gaussian_kl(mean, log_variance).sum(-1)
    found['latent_mean'], found['latent_square'] = mean, jnp.square(mean)  # [batch, latent_width]
    if parts.task['importance_samples'] is not None:
      of = lambda latents: -reconstruction_nats(parts, params, latents, batch)
      sizes = parts.task['importance_samples'], parts.task['importance_chunk']
      found['importance_bound'] = importance_bound(bound_key, mean, log_variance, of, *sizes)
  if parts.quantizes:
    codes = bottlenecks.nearest(parts.encode(params, images, batch['labels']), codebook(params, extra))
    found['code_use'] = jax.nn.one_hot(codes, parts.model['codebook_size']).mean((1, 2))  # [batch, codes]
  return {name: summed(values, mask) for name, values in found.items()}


def summed(values, mask):
  """Values [batch] or [batch, n] -> (sum, weight), each () or [n]."""
  total = (values.T * mask).sum(-1)  # a product of matrices has fewer digits on an accelerator
  return total, jnp.broadcast_to(mask.sum(), total.shape)


def report(parts, binary, metrics):
  """Means of a validation split -> scalars: bits, and what the arrays say of latents and codes."""
  metrics = dict(metrics)
  if 'latent_mean' in metrics:
    variance = np.asarray(metrics.pop('latent_square')) - np.square(metrics.pop('latent_mean'))
    metrics['active_units'] = float((variance > ACTIVE).sum())
  if 'code_use' in metrics:
    share = np.atleast_1d(metrics.pop('code_use'))
    metrics['codebook_perplexity'] = float(np.exp(-(share * np.log(np.maximum(share, 1e-300))).sum()))
    metrics['codes_used'] = float((share > 0).sum())
  counts_levels = parts.model['likelihood'] == 'logistic' or (
    binary and parts.model['likelihood'] == 'bernoulli'
  )
  if 'elbo' in metrics and counts_levels:
    metrics['bits_per_dimension'] = -metrics['elbo'] / (math.prod(parts.model['image_shape']) * math.log(2))
  return metrics


def make_pictures(parts):
  """The compiled functions behind what the task shows; an image is the mean of its distribution."""

  def decode(params, latents, labels):
    outputs, _ = parts.decode(params, latents, labels)
    return jax.nn.sigmoid(outputs) if parts.model['likelihood'] == 'bernoulli' else jnp.clip(outputs, 0, 1)

  def latents(params, images, labels):
    return parts.encode(params, images, labels)[0]

  def reconstruct(params, extra, images, labels):
    encoded = parts.encode(params, images, labels)
    if not parts.quantizes:
      return decode(params, encoded[0], labels)
    codes = codebook(params, extra)
    return decode(params, codes[bottlenecks.nearest(encoded, codes)], labels)

  shown = parts.task['shown_images']
  return autoencoding_pictures.Pictures(
    jax.jit(reconstruct), jax.jit(latents), jax.jit(decode), parts.model, shown
  )
