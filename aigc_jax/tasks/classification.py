"""Classification: one label for each image or text, with any model that maps them to logits."""

import dataclasses
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import models, own_code
from aigc_jax.config import Fraction, NonNegative, Positive, fields_of
from aigc_jax.errors import UsageError, listed
from aigc_jax.task import Context, Task
from aigc_jax.tasks import confusion
from aigc_jax.tasks.augmentation import dynamic_binarization, random_crop, random_flip, random_jitter
from aigc_jax.tasks.images import as_floats, at_least, fitted, gather
from aigc_jax.tasks.losses import smoothed_cross_entropy, softmax_cross_entropy

HIGHER_IS_BETTER = ('accuracy',)  # metrics

ENCODERS = ('mlp', 'cnn', 'resnet', 'vision_transformer')  # of images
MODELS = (*ENCODERS, 'rnn_classifier', 'transformer_classifier')
NAMED_CLASSES = 20  # with more classes than these, accuracies of single classes stay out of the metrics
MISTAKES = 24  # images of mistakes that are shown


@dataclasses.dataclass(frozen=True)
class ClassificationConfig:
  label_smoothing: Annotated[float, Fraction] | None = None  # of the training loss (Szegedy et al. 2016)
  flip: bool = False  # training images are mirrored left to right, every second one
  crop: Annotated[int, Positive] | None = None  # training images are shifted by up to as many pixels
  jitter: Annotated[float, NonNegative] | None = None  # brightness and contrast change by up to this part
  calibration_bins: Annotated[int, Positive] = 15  # of confidence, for the calibration error


def complete(config, dataset):
  """Fills in what the data decides: classes, and the images' shape or the vocabulary's size and the text's length.

  Raises UsageError where model and data do not go together.
  """
  facts, data = dataset.facts, config['data']
  if 'classes' not in facts:
    raise UsageError(
      f'config.data.source: {data["source"]} has no labels to learn; use labelled images or texts'
    )
  kind = 'image_shape' if 'image_shape' in facts else 'vocabulary_size'
  check_kind(config, kind)
  model = dict(config['model'])
  if kind == 'image_shape':
    return config | {'model': fitted(model, dataset, data['source'])}
  needed = {'classes': facts['classes'], 'vocabulary_size': dataset.tokenizer.vocabulary_size}
  if 'context_length' in model:
    needed['context_length'] = data['sequence_length']
  for name, least in needed.items():
    model |= at_least(model, name, least, data['source'])
  return config | {'model': model}


def check_kind(config, kind):
  """Raises UsageError where the model, or a change of images, is not for the `kind` of examples."""
  task, model, source = config['task'], config['model'], config['data']['source']
  what = 'images' if kind == 'image_shape' else 'texts'
  if kind not in model or (model['name'] not in MODELS and not own_code.is_own(model['name'])):
    fitting = [n for n in MODELS if kind in fields_of(models.SCHEMAS[n])]
    raise UsageError(
      f'config.model.name: {model["name"]!r} does not classify {what}, which {source} holds; '
      f'those that do are {listed(fitting)}'
    )
  changes = [name for name in ('flip', 'crop', 'jitter') if task[name] not in (False, None)]
  if what == 'texts' and changes:
    raise UsageError(f'config.task.{changes[0]}: changes images, but {source} holds texts; leave it unset')


def build(config):
  """A Task from a resolved config whose floats may be traced. Batches are those of images or of labelled texts."""
  task = config['task']
  model = models.build(config['model'], jnp.dtype(config['training']['precision']))
  classes, binarizes = config['model']['classes'], config['data'].get('binarization') == 'dynamic'

  apply = applied(model)

  def init(key, batch):
    batch = {name: array[:1] for name, array in gather(batch).items()}
    variables = dict(model.init(key, inputs_of(batch), mask=batch['mask'], lengths=batch.get('lengths')))
    return variables.pop('params'), variables

  def collect(params, extra, batch, context):
    batch, key = gather(batch), context.key
    if binarizes:
      key, pixel_key = jax.random.split(key)
      batch = batch | {'images': dynamic_binarization(pixel_key, batch['images'])}
    return extra, augment(task, batch, key)

  def loss(params, extra, batch, context):
    logits, extra = apply(params, extra, batch, context)
    nats = smoothed_cross_entropy(logits, batch['labels'], task['label_smoothing']) * batch['mask']  # [batch]
    weight = batch['mask'].sum()
    hits = (logits.argmax(-1) == batch['labels']) * batch['mask']
    return nats.sum(), (weight, extra, {'accuracy': (hits.sum(), weight)})

  def evaluate(params, extra, batch, context):
    logits, _ = apply(params, extra, batch, context)
    return measures(logits, batch['labels'], batch['mask'], task['calibration_bins'])

  @jax.jit
  def predict(params, extra, batch):
    """(class [batch], its probability [batch])."""
    logits, _ = apply(params, extra, batch, Context(jax.random.key(0), jnp.int32(0), False))
    return logits.argmax(-1), jax.nn.softmax(logits).max(-1)

  def show(params, extra, dataset, key):
    del key
    return shown(lambda batch: predict(params, extra, batch), dataset, classes)

  better = (*HIGHER_IS_BETTER, *(f'accuracy_{i}' for i in range(min(classes, NAMED_CLASSES))))
  return Task(init, loss, collect, evaluate, report, show, higher_is_better=better)


def applied(model):
  """`apply(params, extra, batch, context)` of a Linen module."""

  def apply(params, extra, batch, context):
    """(logits [batch, classes], extra)."""
    logits, changed = model.apply(
      {'params': params, **extra},
      inputs_of(batch),
      mask=batch['mask'],
      lengths=batch.get('lengths'),
      train=context.train,
      sum=context.sum,
      rngs={'dropout': context.key},
      mutable=['batch_stats'],
    )
    return logits, extra | changed

  return apply


def inputs_of(batch):
  """What the model reads: images as floats, or the tokens of texts."""
  return as_floats(batch['images']) if 'images' in batch else batch['inputs']


def augment(task, batch, key):
  """The batch with its images changed at random as `config.task` asks."""
  crop_key, flip_key, jitter_key = jax.random.split(key, 3)
  if task['crop'] is not None:
    batch = batch | {'images': random_crop(crop_key, batch['images'], task['crop'])}
  if task['flip']:
    batch = batch | {'images': random_flip(flip_key, batch['images'])}
  if task['jitter'] is not None:
    batch = batch | {'images': random_jitter(jitter_key, batch['images'], task['jitter'])}
  return batch


def measures(logits, labels, mask, bins):
  """{name: (sum, weight)} of logits [batch, classes]; the loss is the plain cross-entropy, whatever is trained.

  'accuracy_by_class' [classes] is of the rows of each class, 'share_by_class' [classes] says how many these are.
  'gap_by_bin' [bins]: of predictions whose confidence is alike, hits less confidence, as a part of all rows.
  """
  classes, weight = logits.shape[-1], mask.sum()
  hits = (logits.argmax(-1) == labels) * mask  # [batch]
  of_class = jax.nn.one_hot(labels, classes) * mask[:, None]  # [batch, classes]
  counts = of_class.sum(0)
  confidence = jax.nn.softmax(logits).max(-1)  # [batch]
  # bin m of M holds what lies above (m - 1) / M and up to m / M
  place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
  gap = ((hits - confidence * mask)[:, None] * jax.nn.one_hot(place, bins)).sum(0)
  return {
    'loss': ((softmax_cross_entropy(logits, labels) * mask).sum(), weight),
    'accuracy': (hits.sum(), weight),
    'accuracy_by_class': (hits @ of_class, counts),
    'share_by_class': (counts, jnp.full(classes, weight)),
    'gap_by_bin': (gap, jnp.full(bins, weight)),
  }


def report(metrics):
  """Accuracies of single classes that have examples, and the expected calibration error (Guo et al. 2017, eq. 3)."""
  by_class, shares = (np.atleast_1d(metrics[name]) for name in ('accuracy_by_class', 'share_by_class'))
  scalars = {name: value for name, value in metrics.items() if '_by_' not in name}
  scalars['calibration_error'] = float(np.abs(metrics['gap_by_bin']).sum())
  if len(by_class) <= NAMED_CLASSES:
    scalars |= {f'accuracy_{i}': float(by_class[i]) for i in np.flatnonzero(shares > 0)}
  return scalars


def shown(predict, dataset, classes):
  """The confusion table as text and picture, and for images the most confident mistakes.

  Args: predict: batch -> (class [batch], its probability [batch]).
  """
  counts, mistakes = np.zeros((classes, classes), np.int64), []
  for batch in dataset.validation_batches():
    found, confidence = map(np.asarray, predict(batch))
    real, labels = batch['mask'] > 0, batch['labels']
    np.add.at(counts, (labels[real], found[real]), 1)
    for i in np.flatnonzero(real & (found != labels)) if 'images' in batch else ():
      mistakes.append((confidence[i], batch['images'][i], labels[i], found[i]))
    mistakes = sorted(mistakes, key=lambda mistake: -mistake[0])[:MISTAKES]
  names = confusion.complete_names(dataset.facts.get('class_names', ()), classes)
  pictures = {
    'confusion.txt': confusion.table(counts, names),
    'confusion.png': confusion.picture(counts, names),
  }
  if mistakes:
    pictures['mistakes.png'] = confusion.mistakes_picture(mistakes, names)
  return pictures
