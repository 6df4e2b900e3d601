"""Images that lie in files as arrays: IDX, .npz, and the bundled set."""

import io
import re
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from aigc_jax.data import sources
from aigc_jax.data.image_parts import ImageSource, Part, as_part, digest_of, numbered_classes
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
IDX_FILES = {'train': ('train-images', 'train-labels'), 'test': ('t10k-images', 't10k-labels')}
IDX_MAGIC = {3: 0x0803, 1: 0x0801}  # bytes, in so many dimensions


def read_bundled(name: str, place: str) -> ImageSource:
  """A set that comes with the package. Raises UsageError where there is none of that name, DataError."""
  path, sha256 = sources.find_bundled(name, place, BUNDLED)
  return ImageSource(name, sha256, _npz_parts(path), FASHION_MNIST_CLASSES)


def read_idx(name: str, folder: Path) -> ImageSource:
  """Images and labels of the four files of MNIST and its likes. Raises DataError."""
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


def read_npz(name: str, path: Path) -> ImageSource:
  """Images and labels of one .npz file. Raises DataError."""
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
