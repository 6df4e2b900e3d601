"""Files that appear whole or not at all, whose errors are one line, and their fingerprints."""

import contextlib
import hashlib
import json
import os
import pathlib

from aigc_jax.errors import DataError, StorageError, UsageError


@contextlib.contextmanager
def storage_errors(path):
  """Turns the system's errors of writing `path` into one line."""
  try:
    yield
  except OSError as error:
    raise StorageError(f'{path}: cannot be written: {error.strerror or error}') from error


def write_atomically(path, content):
  """Replaces a file as a whole, also if the machine stops meanwhile; text is UTF-8. Raises StorageError."""
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name}.tmp')
  with storage_errors(path):
    with open(partial, 'wb') as file:
      file.write(content.encode('utf-8') if isinstance(content, str) else content)
      file.flush()
      os.fsync(file.fileno())
    os.replace(partial, path)
    sync(path.parent)


def sync(path):
  """Waits until a file or folder is on the disk itself."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def write_json(path, value):
  write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + '\n')


def read_json(path):
  """Raises UsageError where the file is missing and StorageError where it is not JSON."""
  try:
    return json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError) as error:
    raise UsageError(f'{path}: no such file; a run folder has one') from error
  except (OSError, ValueError) as error:
    raise StorageError(f'{path}: cannot be read: {error}') from error


def read_lines(path):
  """The lines of a UTF-8 file. Raises DataError."""
  try:
    lines = pathlib.Path(path).read_text(encoding='utf-8-sig').removesuffix('\n').split('\n')
  except OSError as error:
    raise DataError(f'{path}: cannot be read: {error.strerror}') from error
  except UnicodeDecodeError as error:
    raise DataError(f'{path}: is not UTF-8 at byte {error.start}; save it as UTF-8') from error
  if lines == ['']:
    raise DataError(f'{path}: is empty; it takes one prompt a line')
  return lines


def sha256_of(path):
  """The SHA-256 of a file's bytes, in hexadecimal. Raises OSError."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def write_image(path, array):
  """Writes [height, width] or [height, width, 1, 3 or 4] as PNG: uint8, or from 0 to 1.

  Returns (height, width). Raises StorageError.
  """
  import numpy as np
  from matplotlib import image  # a picture in a hundred steps: not at every start

  if array.dtype != np.uint8:
    array = np.round(np.clip(array.astype(np.float32), 0, 1) * 255).astype(np.uint8)
  if array.ndim == 3 and array.shape[-1] == 1:
    array = array[..., 0]
  with storage_errors(path):
    image.imsave(path, array, cmap='gray', vmin=0, vmax=255)
  return array.shape[:2]


def write_animation(path, frames, seconds=0.04):
  """Writes uint8 frames [n, height, width, 3] as GIF that goes on for ever; each is shown for `seconds`."""
  from PIL import Image

  first, *others = map(Image.fromarray, frames)
  with storage_errors(path):
    first.save(path, save_all=True, append_images=others, duration=round(1000 * seconds), loop=0)
