"""Where images come from: `bundled:NAME`, `idx:FOLDER`, `npz:PATH`, `images:FOLDER` and `tfds:NAME[:VERSION]`.

A source is opened whole: its images as one array for each of its splits, their labels, and the classes' names.
"""

import hashlib
import io
import re
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from aigc_jax.data import sources
from aigc_jax.errors import DataError

# sha256 of each bundled set; SOURCES.md beside the files says where they come from
BUNDLED = {
  'fashion_mnist_5k': (
    'fashion_mnist_5k.npz',
    '97e87e70a842c363165a80980805502b0400823174a37e949db4c49dbd315f28',
  )
}
FASHION_MNIST_CLASSES = (
  'T-shirt/top',
  'Trouser',
  'Pullover',
  'Dress',
  'Coat',
  'Sandal',
  'Shirt',
  'Sneaker',
  'Bag',
  'Ankle boot',
)
KINDS = {
  'bundled': 'bundled:fashion_mnist_5k',
  'idx': 'idx:FOLDER',
  'npz': 'npz:PATH',
  'images': 'images:FOLDER',
  'tfds': 'tfds:NAME[:VERSION]',
}
MOST_CLASSES = 1 << 16  # a larger label is taken for a mistake
IDX_FILES = {'train': ('train-images', 'train-labels'), 'test': ('t10k-images', 't10k-labels')}
IDX_MAGIC = {3: 0x0803, 1: 0x0801}  # bytes, in so many dimensions


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
    path, sha256 = sources.find_bundled(name, place, BUNDLED)
    source = ImageSource(name, sha256, _npz_parts(path), FASHION_MNIST_CLASSES)
  elif kind == 'idx':
    source = _idx(name, sources.existing(name, place))
  else:
    source = _npz(name, sources.existing(name, place))
  _check(source)
  return source


def digest_of(lines: Sequence[tuple[str, str]]) -> str:
  """One sha256 of several files: that of their lines (sha256, name)."""
  return hashlib.sha256(''.join(f'{digest}  {name}\n' for digest, name in lines).encode('utf-8')).hexdigest()


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


def numbered_classes(name: str, parts: dict[str, Part]) -> tuple[str, ...]:
  """'0', '1', ... as far as the labels go. DataError where they go too far to be classes."""
  most = max((int(part.labels.max()) for part in parts.values() if part.labels.size), default=0)
  if most >= MOST_CLASSES:
    raise DataError(f'{name}: a label is {most:,}; number the classes from 0, up to {MOST_CLASSES:,} of them')
  return tuple(map(str, range(most + 1)))


def _idx(name, folder):
  if not folder.is_dir():
    raise DataError(
      f'{name}: {folder} is a file; idx takes the folder with train-images-idx3-ubyte and the others'
    )
  parts, lines = {}, []
  for part, (images_stem, labels_stem) in IDX_FILES.items():
    images_path, labels_path = (
      _idx_file(name, folder, *pair) for pair in ((images_stem, 3), (labels_stem, 1))
    )
    images, labels = _idx_array(name, images_path, 3), _idx_array(name, labels_path, 1)
    if len(images) != len(labels):
      raise DataError(
        f'{labels_path}: {len(labels):,} labels, and {images_path.name} has {len(images):,} images'
      )
    parts[part] = Part(images[..., None], labels.astype(np.int32))
    lines += [(sources.hash_file(name, path), path.name) for path in (images_path, labels_path)]
  return ImageSource(name, digest_of(lines), parts, numbered_classes(name, parts))


def _idx_file(name, folder, stem, dimensions):
  for file_name in (f'{stem}-idx{dimensions}-ubyte', f'{stem}.idx{dimensions}-ubyte'):
    for path in (folder / file_name, folder / f'{file_name}.gz'):
      if path.is_file():
        return path
  raise DataError(
    f'{name}: the folder {folder} has no {stem}-idx{dimensions}-ubyte, nor one with .gz at its end'
  )


def _idx_array(name, path, dimensions):
  """The array of an IDX file of bytes: big-endian magic number, one size a dimension, then the content."""
  sources.hash_file(name, path)  # says so where the file is empty or cannot be read
  content = b''.join(sources.reading(path, _chunks(path)))
  header = 4 * (1 + dimensions)
  if len(content) < header:
    raise DataError(f'{path}: cut short: {len(content):,} bytes, less than the {header} of an IDX header')
  magic, *shape = struct.unpack(f'>{1 + dimensions}I', content[:header])
  if magic != IDX_MAGIC[dimensions]:
    kind = 'images' if dimensions == 3 else 'labels'
    raise DataError(f'{path}: magic number {magic}, not {IDX_MAGIC[dimensions]} as IDX {kind} of bytes have')
  size = int(np.prod(shape, dtype=object))
  if len(content) - header != size:
    state = 'cut short' if len(content) - header < size else 'too long'
    sizes = ' x '.join(map(str, shape))
    raise DataError(
      f'{path}: {state}: {len(content) - header:,} bytes after the header, which tells of {sizes}'
    )
  return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _chunks(path):
  with sources.open_file(path) as stream:
    while chunk := stream.read(sources.READ_BYTES):
      yield chunk


def _npz(name, path):
  if path.is_dir():
    raise DataError(f'{name}: {path} is a folder; npz takes one file of arrays')
  sha256 = sources.hash_file(name, path)
  parts = _npz_parts(path)
  return ImageSource(name, sha256, parts, numbered_classes(name, parts))


def _npz_parts(path: Path) -> dict[str, Part]:
  arrays = _npz_arrays(path)
  if 'images' in arrays:
    return {'all': as_part(path, arrays, 'images', 'labels')}
  if 'train_images' in arrays and 'test_images' in arrays:
    if ('train_labels' in arrays) != ('test_labels' in arrays):
      raise DataError(f'{path}: only one of train_labels and test_labels is there; give both or neither')
    return {part: as_part(path, arrays, f'{part}_images', f'{part}_labels') for part in ('train', 'test')}
  raise DataError(
    f'{path}: its arrays are {", ".join(list(arrays)[:8]) or "none"}; npz takes train_images and test_images '
    '(and train_labels, test_labels), or images (and labels)'
  )


def _npz_arrays(path):
  try:
    content = path.read_bytes()
    if not content.startswith(b'PK'):
      raise DataError(f'{path}: not an .npz file, a zip archive of arrays as numpy.savez writes')
    with np.load(io.BytesIO(content), allow_pickle=False) as opened:
      known = [n for n in opened.files if re.fullmatch(r'(train_|test_)?(images|labels)', n)]
      return {n: opened[n] for n in known} or dict.fromkeys(opened.files)
  except OSError as error:
    raise DataError(f'{path}: not a whole .npz file: {error.strerror or error}') from None
  except (ValueError, EOFError, KeyError, NotImplementedError) as error:
    raise DataError(f'{path}: not an .npz file of plain arrays: {_first_line(error)}') from None
  except (zipfile.BadZipFile, zlib.error, struct.error, MemoryError) as error:
    raise DataError(f'{path}: not a whole .npz file: {_first_line(error)}') from None


def _first_line(error):
  return (str(error).splitlines() or [type(error).__name__])[0]


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
