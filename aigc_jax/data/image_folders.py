"""Images from folders of PNG and JPEG files: a class for each subfolder, or one class for all."""

import hashlib
import io
import pathlib

import numpy as np

from aigc_jax.data.image_parts import ImageSource, Part, digest_of
from aigc_jax.errors import DataError, nearest

SUFFIXES = ('.png', '.jpg', '.jpeg')
ONE_CLASS = '0'  # as in sources without labels
VALIDATION_FOLDERS = ('validation', 'test')  # the first that is there validates
GRAY = {'1', 'L', 'LA'}
COLOURED = {'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr', 'HSV', 'LAB'}  # what becomes RGB


def read(name: str, folder) -> ImageSource:
  """The images under `folder`, with their classes from its subfolders. Raises DataError."""
  if not folder.is_dir():
    raise DataError(f'{name}: {folder} is a file; images takes a folder')
  parts = {'all': folder}
  if (folder / 'train').is_dir():
    for validation in VALIDATION_FOLDERS:
      if (folder / validation).is_dir():
        parts = {'train': folder / 'train', validation: folder / validation}
        break
  files = {part: _files(name, where) for part, where in parts.items()}
  class_names = tuple(next(iter(files.values())))
  for part, found in files.items():
    for unknown in [c for c in found if c not in class_names]:
      hint = nearest(unknown, class_names)
      raise DataError(f'{parts[part] / unknown}: training has no class {unknown!r}; {hint}'.rstrip('; '))
  coloured = _survey([path for found in files.values() for paths in found.values() for path in paths])
  lines, arrays = [], {}
  for part, found in files.items():
    paths = [path for of_class in found.values() for path in of_class]
    labels = [class_names.index(c) for c, of_class in found.items() for _ in of_class]
    arrays[part] = Part(_decoded(paths, coloured, folder, lines), np.array(labels, np.int32))
  return ImageSource(name, digest_of(lines), arrays, class_names)


def _files(name, folder):
  """{class: its image files}, both sorted; without subfolders all are of one class."""
  try:
    entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith('.'))
  except OSError as error:
    raise DataError(f'{name}: the folder {folder} cannot be read: {error.strerror}') from None
  folders = [entry for entry in entries if entry.is_dir()]
  images = [entry for entry in entries if entry.suffix.lower() in SUFFIXES and entry.is_file()]
  if not folders:
    if not images:
      raise DataError(f'{name}: the folder {folder} holds no PNG or JPEG image')
    return {ONE_CLASS: images}
  if images:
    raise DataError(
      f'{name}: {images[0]} lies beside folders of classes; move it into the folder of its class'
    )
  found = {}
  for inner in folders:
    try:
      found[inner.name] = sorted(path for path in inner.iterdir() if path.suffix.lower() in SUFFIXES)
    except OSError as error:
      raise DataError(f'{name}: the folder {inner} cannot be read: {error.strerror}') from None
    if not found[inner.name]:
      raise DataError(f'{name}: the folder {inner} of a class holds no PNG or JPEG image')
  return found


def _opened(path, content=None):
  """The PIL image of a file; its pixels are decoded where `content` is given. Raises DataError."""
  from PIL import Image

  try:
    image = Image.open(path if content is None else io.BytesIO(content), formats=('PNG', 'JPEG'))
    if content is not None:
      image.load()
    return image
  except Image.UnidentifiedImageError:
    raise DataError(f'{path}: not a PNG or JPEG image') from None
  except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
    reason = getattr(error, 'strerror', None) or str(error).splitlines()[0]
    raise DataError(f'{path}: the image cannot be read: {reason}') from None


def read_image(path, channels):
  """The pixels of a PNG or JPEG file, uint8 [height, width, channels], of 1 channel (grey) or 3. Raises DataError."""
  try:
    content = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise DataError(f'{path}: cannot be read: {error.strerror}') from None
  with _opened(path, content) as image:
    array = np.asarray(image.convert('L' if channels == 1 else 'RGB'))
  return array.reshape(*array.shape[:2], channels)


def _survey(paths):
  """Whether any image is coloured, from the headers alone. DataError where sizes differ."""
  size, coloured = None, False
  for path in paths:
    with _opened(path) as image:
      if image.mode not in GRAY | COLOURED:
        raise DataError(f'{path}: pixels of the mode {image.mode}; convert it to 8 bits a channel')
      size = size or image.size
      if image.size != size:
        of = lambda width, height: f'{width} x {height}'
        raise DataError(
          f'{path}: {of(*image.size)} pixels, and {paths[0]} has {of(*size)}; bring all images to one size'
        )
      coloured = coloured or image.mode in COLOURED
  return coloured


def _decoded(paths, coloured, folder, lines):
  """uint8 [images, height, width, 1 or 3]; appends (sha256, name) of each file to `lines`."""
  images = None
  for i, path in enumerate(paths):
    try:
      content = path.read_bytes()
    except OSError as error:
      raise DataError(f'{path}: cannot be read: {error.strerror}') from None
    lines.append((hashlib.sha256(content).hexdigest(), path.relative_to(folder).as_posix()))
    with _opened(path, content) as image:
      array = np.asarray(image.convert('RGB' if coloured else 'L'))
    if images is None:
      images = np.empty((len(paths), *array.shape[:2], 3 if coloured else 1), np.uint8)
    images[i] = array.reshape(images.shape[1:])
  return images
