"""What learning without labels is worth: few labelled images, and classifiers that see nothing but features.

The labelled images are the first of each class of the training set, and lie in `extra`: so a run folder has them, and
an evaluation of other images needs nothing else.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from aigc_jax.errors import UsageError
from aigc_jax.figures import rendered
from aigc_jax.task import Context
from aigc_jax.tasks.confusion import legible
from aigc_jax.tasks.images import as_floats, fitted

ITERATIONS = 100  # of L-BFGS
SHARPNESS = 0.07  # of a neighbour's vote (Wu et al. 2018, section 3.4)
MAPPED = 2000  # images on a map
HIGHER_IS_BETTER = ('probe_accuracy', 'neighbour_accuracy')  # metrics


def complete(config, dataset):
  """`config.model` with what the data decides. Raises UsageError where the two do not go together."""
  if config['data']['binarization'] == 'dynamic':
    raise UsageError(
      "config.data.binarization: 'dynamic' draws pixels anew for likelihoods, which this task has none of; use 'fixed' "
      'or none'
    )
  return fitted(dict(config['model']), dataset, config['data']['source'])


def init(model, key, batch, per_class, classes):
  """(parameters of an image encoder, `extra`, the features of one image [1, width]) for a batch, see `labelled`."""
  known = labelled(batch, per_class, classes)
  one = as_floats(known['images'][:1])
  found, variables = model.init_with_output(key, one, mask=jnp.ones(1), method='encode')
  variables = dict(variables)
  return variables.pop('params'), variables | {'labelled': known}, found


def encode(model, params, extra, images, mask, context):
  """(features [batch, width], extra) of images float32 [batch, height, width, channels]."""
  kept = {name: value for name, value in extra.items() if name != 'labelled'}
  found, changed = model.apply(
    {'params': params, **kept},
    images,
    mask=mask,
    train=context.train,
    sum=context.sum,
    rngs={'dropout': context.key},
    mutable=['batch_stats'],
    method='encode',
  )
  return found, extra | changed


def features(model, params, extra, images):
  """Images, uint8 or float32 [batch, height, width, channels] -> float32 [batch, width], as evaluations see them."""
  images, context = as_floats(images), Context(jax.random.key(0), jnp.int32(0), False)
  found, _ = encode(model, params, extra, images, jnp.ones(len(images)), context)
  return found.astype(jnp.float32)


def labelled(batch, per_class, classes):
  """{'images', 'labels'} [images]: the first `per_class` of each class, class by class in turn.

  Of what lives on the device: the data set, or the first of each class of a larger one; of the batch where nothing
  does. Where a class has fewer, others have more.
  """
  found = batch.get('resident', batch)
  labels = jnp.asarray(found['labels'])
  of_class = jax.nn.one_hot(labels, classes, dtype=jnp.int32)
  rank = (jnp.cumsum(of_class, 0) * of_class).max(1)  # 1 for the first of its class, 2 for the second, ...
  rows = jnp.argsort(rank, stable=True)[: per_class * classes]
  return {'images': jnp.asarray(found['images'])[rows], 'labels': labels[rows]}


def measures(model, params, extra, batch, classes, neighbours):
  """{name: (sum, weight)} of a validation batch: how many labels are told from few labelled images.

  Args:
    classes: how many there are; of one, nothing can be told. neighbours: that vote.
  """
  if classes < 2:
    return {}
  known, mask = extra['labelled'], batch['mask']
  few, asked = (features(model, params, extra, images) for images in (known['images'], batch['images']))
  guesses = {
    'probe_accuracy': linear_probe(few, known['labels'], classes, asked),
    'neighbour_accuracy': nearest_neighbours(few, known['labels'], classes, asked, neighbours),
  }
  return {name: (((guess == batch['labels']) * mask).sum(), mask.sum()) for name, guess in guesses.items()}


def linear_probe(features, labels, classes, asked):
  """The classes [m] of features `asked` [m, width] by logistic regression on few [n, width] with labels [n].

  Each row is scaled to a mean square of 1, so that only its direction counts; the sum of cross-entropies and half the
  squared weights is least.
  """
  features, asked = (x * math.sqrt(x.shape[1]) for x in (unit(features), unit(asked)))

  def cost(weights):
    logits = features @ weights['kernel'] + weights['bias']
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()
    return nats + 0.5 * jnp.square(weights['kernel']).sum()

  solver = optax.lbfgs()
  weights = {'kernel': jnp.zeros((features.shape[1], classes)), 'bias': jnp.zeros(classes)}

  def step(carry, _):
    weights, state = carry
    value, slope = optax.value_and_grad_from_state(cost)(weights, state=state)
    change, state = solver.update(slope, state, weights, value=value, grad=slope, value_fn=cost)
    return (optax.apply_updates(weights, change), state), None

  (weights, _), _ = jax.lax.scan(step, (weights, solver.init(weights)), length=ITERATIONS)
  return (asked @ weights['kernel'] + weights['bias']).argmax(-1)


def unit(x):
  return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-12)


def nearest_neighbours(features, labels, classes, asked, neighbours):
  """The classes [m] of features `asked` by the votes of the nearest of few, by their angles (Wu et al. 2018)."""
  closeness, nearest = jax.lax.top_k(unit(asked) @ unit(features).T, min(neighbours, len(features)))
  votes = jax.nn.one_hot(labels[nearest], classes) * jnp.exp((closeness - 1) / SHARPNESS)[..., None]
  return votes.sum(1).argmax(-1)


def mapper(model):
  """params, extra, dataset -> a picture of the validation images' features, see `drawn_map`; compiled once."""
  features_of = jax.jit(partial(features, model))

  def draw(params, extra, dataset):
    found, labels = [], []
    for batch in dataset.validation_batches():
      real = batch['mask'] > 0
      found.append(np.asarray(features_of(params, extra, batch['images']))[real])
      labels.append(batch['labels'][real])
      if sum(map(len, labels)) >= MAPPED:
        break
    return drawn_map(
      np.concatenate(found)[:MAPPED], np.concatenate(labels)[:MAPPED], dataset.facts['class_names']
    )

  return draw


def drawn_map(features, labels, names):
  """Features [n, width] on their first two principal axes, a colour for each class: uint8 [height, width, 3]."""
  from matplotlib.figure import Figure  # a picture in hundreds of steps: not at every start

  points, shares = principal(features)
  names, families = legible(names)
  figure = Figure(figsize=(7, 5.5), dpi=120, layout='constrained')
  plot = figure.add_subplot()
  colours = [f'C{i}' for i in range(10)] if len(names) <= 10 else None
  for i, name in enumerate(names):
    chosen = points[labels == i]
    colour = colours[i] if colours else [plot_colour(i, len(names))]
    plot.scatter(*chosen.T, s=8, alpha=0.7, linewidths=0, c=colour, label=name)
  plot.set(xticks=(), yticks=(), xlabel=f'{shares[0]:.0%} of the variance', ylabel=f'{shares[1]:.0%}')
  if len(names) <= 20:
    plot.legend(
      loc='center left', bbox_to_anchor=(1, 0.5), frameon=False, prop={'family': families}, markerscale=2
    )
  return rendered(figure)


def principal(features):
  """([n, 2] where features [n, width] lie on their first two principal axes, the shares of the variance [2]).

  0 along axes that there are not: of one image, of features of width 1, or of those that are all alike.
  """
  centred = features.astype(np.float64)  # whose squares are neither 0 nor infinite
  centred -= centred.mean(0)
  _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
  missing = max(0, 2 - len(sizes))
  points, sizes = np.pad(centred @ axes[:2].T, ((0, 0), (0, missing))), np.pad(sizes, (0, missing))
  return points, np.square(sizes[:2]) / (np.square(sizes).sum() or 1)


def plot_colour(i, count):
  from matplotlib import colormaps

  return colormaps['gist_rainbow'](i / count)
