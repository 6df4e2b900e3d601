"""The latents of an autoencoder: what each changes in an image, and how much each tells.

A latent is active where its posterior mean varies over the images by more than 0.01 (Burda et al. 2016, section 5.2);
what it tells is its divergence from the prior, in nats (Higgins et al. 2017 walk along latents as here).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import data, tasks
from aigc_jax.errors import UsageError
from aigc_jax.probes.panels import Axis, Bars, Pictures
from aigc_jax.probes.result import Probe
from aigc_jax.tasks.autoencoding import ACTIVE
from aigc_jax.tasks.images import as_floats
from aigc_jax.tasks.likelihoods import gaussian_kl

SHOWN, STEPS, REACH = 16, 9, 3.0  # latents that are walked along; steps of each walk, and how far it goes
BATCHES = 16  # of the validation split that statistics are of, at most
NOTES = (
  'Each row walks along one latent of the first image, all others held, {walk}. Rows are in the order of what latents '
  'tell; a latent that tells nothing changes nothing.'
)


def probe(run, reading):
  """Walks from the first image of a Reading, and statistics over the validation split.

  Arrays: 'variance' [latents] of the means over the images, and of a Gaussian posterior 'divergence' [latents] in nats;
  'order' [latents], those that tell most first; 'walks' [walked, steps, height, width, channels] and 'positions'
  [walked, steps] of the first of these. Raises UsageError for models without latents that are numbers.
  """
  if run.config['model']['name'] != 'autoencoder':
    raise UsageError(
      f'{run.path}: its model, {run.config["model"]["name"]}, has no latents to walk along; an autoencoder has'
    )
  module, variables = reading.module, reading.variables
  encode = jax.jit(lambda *inputs: module.apply(variables, *inputs, method='encode'))
  means, divergence = statistics(run, encode)
  variance, gaussian = means.var(0), divergence is not None
  tells = divergence.mean(0) if gaussian else variance
  order = np.argsort(-tells, kind='stable')
  image, label = (array[:1] for array in reading.inputs)
  middle = np.asarray(encode(image, label)[0])[0]  # [latents]
  span = (-REACH, REACH) if gaussian else np.quantile(means, (0.01, 0.99), axis=0)
  positions = np.broadcast_to(np.linspace(*span, STEPS), (STEPS, len(middle)) if not gaussian else (STEPS,)).T
  positions = np.broadcast_to(positions, (len(middle), STEPS))
  walks = walk(module, variables, middle, label, positions[order[:SHOWN]], order[:SHOWN])
  kept = {'variance': variance, 'positions': positions[order[:SHOWN]], 'walks': walks, 'order': order}
  counted = f'{(variance > ACTIVE).sum()} of {len(middle)} latents are active (above {ACTIVE})'
  rows = Axis('latent', [f'{i}' for i in order[:SHOWN]])
  steps = [f'{x:+.2g}' for x in np.linspace(-REACH, REACH, STEPS)]
  steps = steps if gaussian else [f'{share:.0%}' for share in np.linspace(0, 1, STEPS)]
  columns = Axis('value' if gaussian else 'of the way from the 1st to the 99th percentile', steps)
  labels = Axis('latent', [str(i) for i in order])
  both = np.stack([np.asarray(image[0]), decoded(module, variables, middle[None], label)[0]])[None]
  panels = [
    Pictures('the image, and as it comes back', both, Axis('', ['']), Axis('', ['image', 'given back'])),
    Pictures(f'walks along {len(rows.labels)} latents', walks, rows, columns),
    Bars(f'variance of the mean over images; {counted}', variance[order], labels),
  ]
  if gaussian:
    kept['divergence'] = tells
    panels.insert(
      2, Bars(f'divergence from the prior, {tells.sum():.2f} nats in all', tells[order], labels, 'nats')
    )
  how = 'from -3 to 3 deviations of the prior' if gaussian else 'between percentiles of the encoded images'
  return Probe('latents', 'latents', panels, kept, NOTES.format(walk=how))


def statistics(run, encode):
  """(means [images, latents], divergences [images, latents] or None) over the validation split."""
  dataset = data.load(run.config['data'], None, tasks.form_of(run.config))
  means, divergences = [], []
  for batch in itertools.islice(dataset.validation_batches(), BATCHES):
    real = batch['mask'] > 0
    mean, log_variance = encode(as_floats(jnp.asarray(batch['images'])), batch['labels'])
    means.append(np.asarray(mean)[real])
    if log_variance is not None:
      divergences.append(np.asarray(gaussian_kl(mean, log_variance))[real])
  return np.concatenate(means), np.concatenate(divergences) if divergences else None


def decoded(module, variables, latents, labels):
  """Latents [n, latents], labels [1] -> images [n, height, width, channels] from 0 to 1, the means."""
  labels = jnp.repeat(labels, len(latents))
  outputs, _ = module.apply(variables, jnp.asarray(latents, jnp.float32), labels, method='decode')
  outputs = jax.nn.sigmoid(outputs) if module.likelihood == 'bernoulli' else jnp.clip(outputs, 0, 1)
  return np.asarray(outputs)


def walk(module, variables, middle, label, positions, chosen):
  """Images [latents, steps, height, width, channels] along each of the `chosen` latents."""
  latents = np.repeat(middle[None], positions.size, 0).reshape(*positions.shape, -1)
  for row, latent in enumerate(chosen):
    latents[row, :, latent] = positions[row]
  images = decoded(module, variables, latents.reshape(positions.size, -1), label)
  return images.reshape(*positions.shape, *images.shape[1:])
