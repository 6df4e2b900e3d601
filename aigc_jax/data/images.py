"""Images as batches: `train_batch(step)` is a pure function of (data.seed, step).

A set that fits lies on the device whole, and a training batch is the rows to take; a larger one is gathered here.
"""

import dataclasses
import functools
from typing import Annotated, Any, Literal

import numpy as np

from aigc_jax.config import Positive, Range
from aigc_jax.data import batches
from aigc_jax.data.image_parts import ImageSource, Part
from aigc_jax.data.image_sources import open_images
from aigc_jax.data.pipeline import Dataset
from aigc_jax.errors import DataError, nearest

RESIDENT_BYTES = 512 << 20  # the most that a set may take of a device's memory
FIRST_BYTES = 128 << 20  # of a larger set, the most that the first of each class take there
DRAWN_ROWS = 1024  # images binarized at a time


@dataclasses.dataclass(frozen=True)
class ImageData:
  source: str = 'bundled:fashion_mnist_5k'  # kind:place, see data/image_sources.py
  validation_source: str | None = None  # None: the source's own split, or the last part of `source`
  # used where the source has no split of its own
  validation_fraction: Annotated[float, Range('in (0, 1)', above=0, below=1)] = 0.1
  images_per_class: Annotated[int, Positive] | None = (
    None  # of those that train, the first of each class; None: all
  )
  batch_size: Annotated[int, Positive] = 128  # images of a step, over all devices and microbatches
  seed: int = 0  # of the order of the data, and of what is drawn with them
  # pixels become 0 or 1, with their intensity as the probability of 1: drawn once, or anew at each training step
  binarization: Literal['fixed', 'dynamic'] | None = None
  data_dir: str | None = None  # where TensorFlow Datasets keeps what it has prepared; None: its own default


def load(data_config: dict[str, Any]) -> Dataset:
  """The images that `config.data` describes.

  A training batch holds 'rows' (int32 [batch]) of `resident`, or 'images' ([batch, height, width, channels], uint8
  or float32 in [0, 1]) and 'labels' (int32 [batch]) where the set is too large for that, and `resident` is but the
  first of each class; 'mask' (float32 [batch]) always. A validation batch holds 'images', 'labels' and 'mask', 0 at
  the padding of the last one.
  Raises UsageError (config) and DataError (files).
  """
  config = batches.checked(ImageData, data_config)
  return _dataset(config, *read(config))


def read(config) -> tuple[Part, Part, dict[str, Any]]:
  """(the images that train, those that validate, facts) of a complete `config.data`."""
  source = open_images(config['source'], config['data_dir'])
  train, validation = (source.parts.get(name) for name in ('train', 'all'))
  if config['validation_source']:
    other = open_images(config['validation_source'], config['data_dir'])
    train, validation = train or validation, _renumbered(other, source.class_names)
    split = f'{len(train.images):,} train; validation has a source of its own with {len(validation.images):,}'
  elif train:
    own = next(name for name in source.parts if name != 'train')
    validation = source.parts[own]
    split = f"the source's own: {len(train.images):,} train, {len(validation.images):,} of {own!r} validate"
  else:
    whole, fraction = validation, config['validation_fraction']
    *rows, split = batches.split_rows(source.name, len(whole.images), fraction, 'images')
    train, validation = (Part(whole.images[chosen], whole.labels[chosen]) for chosen in rows)
  _check_sizes(config, train, validation)
  if config['images_per_class'] is not None:
    train = first_of_each(train, config['images_per_class'])
    split += f'; of these the first {config["images_per_class"]:,} of each class train'
  if config['binarization'] == 'fixed':
    train = Part(binarized(train.images, config['seed'], 'train'), train.labels)
  validation = _binary_validation(config, validation)
  facts = _facts(config, source, split, train, validation)
  if config['validation_source']:
    facts |= {'validation_source': other.name, 'validation_sha256': other.sha256}
  return train, validation, facts


def first_of_each(part, count):
  """Of a Part the first `count` images of each class, in their order."""
  rows = [np.flatnonzero(part.labels == label)[:count] for label in np.unique(part.labels)]
  chosen = np.sort(np.concatenate(rows))
  return Part(part.images[chosen], part.labels[chosen])


def first_of_all(part, count):
  """Of a Part at most `count` images: the first of each class, then the second of each, and so on."""
  by_class = np.argsort(part.labels, kind='stable')
  labels = part.labels[by_class]
  rank = np.empty(len(labels), np.int64)  # 0 for the first of its class, 1 for the second, ...
  rank[by_class] = np.arange(len(labels)) - np.searchsorted(labels, labels)
  chosen = np.argsort(rank, kind='stable')[:count]
  return Part(part.images[chosen], part.labels[chosen])


def load_validation(data_config: dict[str, Any], class_names=None, image_shape=None) -> Dataset:
  """The source's validation or test split, or all of a source without one; no training batches.

  Args:
    data_config: `config.data`.
    class_names: the classes of the trained model, by which labels are numbered; None: the source's own.
    image_shape: (height, width, channels) that the model takes; None: any.

  Raises:
    UsageError (config) and DataError (files, images of another shape, or a class that `class_names` lacks).
  """
  config = batches.checked(ImageData, data_config)
  source = open_images(config['source'], config['data_dir'])
  part = _renumbered(source, tuple(class_names or source.class_names))
  if image_shape is not None and part.images.shape[1:] != tuple(image_shape):
    raise DataError(
      f'{source.name}: images of {_sizes(part.images.shape[1:])}, and the model was trained on {_sizes(image_shape)}'
    )
  name = next(reversed(source.parts))
  split = 'all of it validates' if name == 'all' else f"the source's own {name!r} validates"
  source = source._replace(class_names=tuple(class_names or source.class_names))
  part = _binary_validation(config, part)
  return _dataset(config, None, part, _facts(config, source, split, None, part))


def _renumbered(source: ImageSource, class_names) -> Part:
  """The images of `source` that validate, with labels as places in `class_names`."""
  part = source.parts[next(reversed(source.parts))]
  numbered = source.class_names == tuple(map(str, range(len(source.class_names))))
  numbered = numbered and len(source.class_names) <= len(class_names)
  # a source without names has the numbers of the classes, unless the classes are called by numbers themselves
  if source.class_names == tuple(class_names) or (numbered and not {*source.class_names} & {*class_names}):
    return part
  present = [source.class_names[label] for label in np.unique(part.labels)]
  for name in present:
    if name not in class_names:
      hint = nearest(name, class_names)
      raise DataError(f'{source.name}: class {name!r} is none of the training classes; {hint}'.rstrip('; '))
  table = [class_names.index(name) if name in class_names else -1 for name in source.class_names]
  return Part(part.images, np.array(table, np.int32)[part.labels])


def _check_sizes(config, train, validation):
  ours, theirs = train.images.shape[1:], validation.images.shape[1:]
  if ours != theirs:
    raise DataError(
      f'{config["validation_source"]}: images of {_sizes(theirs)}, and those of {config["source"]} are {_sizes(ours)}'
    )


def _sizes(shape):
  return ' x '.join(map(str, shape))


def _facts(config, source, split, train, validation):
  counts = {'train_images': len(train.images)} if train else {}
  counts['validation_images'] = len(validation.images)
  shape, classes = list(validation.images.shape[1:]), len(source.class_names)
  numbers = ' and '.join(f'{count:,}' for count in counts.values())
  facts = {
    'source': source.name,
    'sha256': source.sha256,
    'size': f'{numbers} images of {_sizes(shape)} in {classes} {"class" if classes == 1 else "classes"}',
    'split': split,
    'image_shape': shape,
    'classes': classes,
    'class_names': list(source.class_names),
    **counts,
  }
  if train:
    facts['steps_per_epoch'] = round(len(train.images) / config['batch_size'], 2)
  return facts


def binarized(images: np.ndarray, seed: int, part: str) -> np.ndarray:
  """0 or 255, where the probability of 255 is the intensity: Salakhutdinov & Murray 2008, section 5.

  uint8 or float32 [images, height, width, channels] -> uint8 of that shape, a pure function of (seed, part, images).
  """
  generator = np.random.default_rng([seed % 2**64, ('train', 'validation').index(part)])
  scale = 255 if images.dtype == np.uint8 else 1
  drawn = np.empty(images.shape, np.uint8)
  for first in range(0, len(images), DRAWN_ROWS):
    rows = images[first : first + DRAWN_ROWS]
    drawn[first : first + DRAWN_ROWS] = (generator.random(rows.shape, np.float32) * scale < rows) * np.uint8(
      255
    )
  return drawn


def _binary_validation(config, part):
  """The images that validate, drawn once where the config asks for binary ones."""
  if config['binarization'] is None:
    return part
  return Part(binarized(part.images, config['seed'], 'validation'), part.labels)


def _dataset(config, train, validation, facts):
  batch_size = config['batch_size']
  validation_batches = functools.partial(batches.padded_batches, validation._asdict(), batch_size)
  size = -(-len(validation.images) // batch_size)
  if train is None:
    return Dataset(None, batches.no_training, validation_batches, size, facts)
  rows_of = batches.shuffled_rows(len(train.images), batch_size, config['seed'])
  whole = train.images.nbytes <= RESIDENT_BYTES
  most = FIRST_BYTES // train.images[0].nbytes
  resident = (train if whole else first_of_all(train, most))._asdict()

  def train_batch(step, part=batches.WHOLE):
    rows, _ = rows_of(step, part)
    mask = np.ones(len(rows), np.float32)
    if whole:
      return {'rows': rows, 'mask': mask}
    return {'images': train.images[rows], 'labels': train.labels[rows], 'mask': mask}

  return Dataset(None, train_batch, validation_batches, size, facts, resident)
