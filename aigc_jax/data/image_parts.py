"""What an opened source of images is, and the checks that all kinds of sources share."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from aigc_jax.errors import DataError

MOST_CLASSES = 1 << 16  # a larger label is taken for a mistake


class Part(NamedTuple):
  images: np.ndarray  # [images, height, width, channels] uint8, or float32 in [0, 1]
  labels: np.ndarray  # [images] int32


class ImageSource(NamedTuple):
  """An opened source. `parts` are its own splits, 'train' and 'test' or 'validation', or 'all' without any."""

  name: str  # as written in the config
  # of the file; of several, of the lines `sha256  name` that they have in order; of TFDS, of the arrays
  sha256: str
  parts: dict[str, Part]
  class_names: tuple[str, ...]


def digest_of(lines: Sequence[tuple[str, str]]) -> str:
  """One sha256 of several files: that of their lines (sha256, name)."""
  return hashlib.sha256(''.join(f'{digest}  {name}\n' for digest, name in lines).encode('utf-8')).hexdigest()


def numbered_classes(name: str, parts: dict[str, Part]) -> tuple[str, ...]:
  """'0', '1', ... as far as the labels go. DataError where they go too far to be classes."""
  most = max((int(part.labels.max()) for part in parts.values() if part.labels.size), default=0)
  if most >= MOST_CLASSES:
    raise DataError(f'{name}: a label is {most:,}; number the classes from 0, up to {MOST_CLASSES:,} of them')
  return tuple(map(str, range(most + 1)))


def as_part(where, arrays: dict[str, np.ndarray], images_name: str, labels_name: str) -> Part:
  """The Part of two arrays by their names; labels may be missing, then all are of class 0.

  Raises DataError, beginning with `where`, for shapes, types and values that are no images or no labels.
  """
  images = arrays[images_name]
  if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
    shape = list(images.shape)
    raise DataError(
      f'{where}: {images_name} has shape {shape}, not [images, height, width] with or without 1 or 3'
    )
  if images.ndim == 3:
    images = images[..., None]
  if images.dtype != np.uint8:
    images = _checked_floats(where, images_name, images)
  labels = arrays.get(labels_name)
  if labels is None:
    return Part(images, np.zeros(len(images), np.int32))
  if labels.dtype.kind not in 'iu':
    raise DataError(f'{where}: {labels_name} holds {labels.dtype}, not integers')
  if labels.shape != (len(images),):
    raise DataError(
      f'{where}: {labels_name} has shape {list(labels.shape)}, and there are {len(images):,} images'
    )
  if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < 2**31:
    raise DataError(
      f'{where}: {labels_name} has values from {labels.min()} to {labels.max()}; number classes from 0'
    )
  return Part(np.ascontiguousarray(images), labels.astype(np.int32))


def _checked_floats(where, name, images):
  if images.dtype.kind != 'f':
    raise DataError(f'{where}: {name} holds {images.dtype}, not uint8 or floats in [0, 1]')
  if images.size and not (images.min() >= 0 and images.max() <= 1):
    raise DataError(
      f'{where}: {name} has values from {images.min():g} to {images.max():g}; floats are in [0, 1]'
    )
  return images.astype(np.float32)
