"""Where images come from: `bundled:NAME`, `idx:FOLDER`, `npz:PATH`, `images:FOLDER` and `tfds:NAME[:VERSION]`.

A source is opened whole: its images as one array for each of its splits, their labels, and the classes' names.
"""

import numpy as np

from aigc_jax.data import image_arrays, sources
from aigc_jax.data.image_parts import ImageSource
from aigc_jax.errors import DataError

KINDS = {
  'bundled': 'bundled:fashion_mnist_5k',
  'idx': 'idx:FOLDER',
  'npz': 'npz:PATH',
  'images': 'images:FOLDER',
  'tfds': 'tfds:NAME[:VERSION]',
}


def open_images(name: str, data_dir: str | None = None) -> ImageSource:
  """Reads all images of `name`; `data_dir` is where TensorFlow Datasets keeps what it has prepared.

  Raises UsageError where the kind or the bundled name is unknown, DataError where files are missing or broken.
  """
  kind, place = sources.parted(name, KINDS)
  if kind == 'tfds':
    from aigc_jax.data import tfds_source

    source = tfds_source.read(name, place, data_dir)
  elif kind == 'images':
    from aigc_jax.data import image_folders

    source = image_folders.read(name, sources.existing(name, place))
  elif kind == 'bundled':
    source = image_arrays.read_bundled(name, place)
  elif kind == 'idx':
    source = image_arrays.read_idx(name, sources.existing(name, place))
  else:
    source = image_arrays.read_npz(name, sources.existing(name, place))
  _check(source)
  return source


def _check(source):
  """Labels within the classes, images of one size in all parts, none of them empty."""
  shapes = {part.images.shape[1:] for part in source.parts.values()}
  if len(shapes) > 1:
    found = ' and '.join(' x '.join(map(str, shape)) for shape in sorted(shapes))
    raise DataError(f'{source.name}: images of {" and of ".join(source.parts)} differ in size: {found}')
  for name, part in source.parts.items():
    if not part.images.size:
      raise DataError(f'{source.name}: the part {name!r} holds no image')
    outside = np.flatnonzero((part.labels < 0) | (part.labels >= len(source.class_names)))
    if outside.size:
      raise DataError(
        f'{source.name}: label {part.labels[outside[0]]} of image {outside[0]:,} of {name!r} is outside the '
        f'{len(source.class_names)} classes 0 to {len(source.class_names) - 1}'
      )
