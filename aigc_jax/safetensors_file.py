"""One file of safetensors: where its tensors lie, and tensors read and written piece by piece.

The `safetensors` library checks a file's header (its size, its JSON, overlapping or missing bytes) before anything is
allocated. Its own readers map the file, whose pages count as memory until it is closed, and copy a tensor whole; here
pieces go to where they belong.
"""

import json
import math
import pathlib
import struct
from typing import NamedTuple

import numpy as np
from ml_dtypes import bfloat16

from aigc_jax import files
from aigc_jax.errors import DataError

# in the library's order: it writes the last of these first
DTYPES = {'F16': np.dtype(np.float16), 'BF16': np.dtype(bfloat16), 'F32': np.dtype(np.float32)}
PIECE = 8 << 20  # bytes read or written at once


class Tensor(NamedTuple):
  """Where a tensor lies."""

  path: pathlib.Path
  offset: int  # bytes
  dtype: str  # as safetensors names it, such as 'BF16'
  shape: tuple


def read_header(path):
  """{name: Tensor} of one file. Raises DataError."""
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(path, framework='np'):  # which checks the header
      pass
    with open(path, 'rb') as file:
      (size,) = struct.unpack('<Q', file.read(8))
      header = json.loads(file.read(size))
  except (SafetensorError, OSError) as error:
    reason = str(error).removeprefix('Error while deserializing header: ')
    raise DataError(f'{path}: is no whole safetensors file: {reason}') from None
  header.pop('__metadata__', None)
  tensor = lambda entry: (8 + size + entry['data_offsets'][0], entry['dtype'], tuple(entry['shape']))
  return {name: Tensor(pathlib.Path(path), *tensor(entry)) for name, entry in header.items()}


def read_into(tensor, targets):
  """Reads a tensor, as float32, into arrays.

  Args:
    targets: views whose columns (last axis) together are those of the tensor: [rows, columns] or [columns] each.
  """
  dtype, rows, width = DTYPES[tensor.dtype], tensor.shape[0], math.prod(tensor.shape[1:])
  if len(tensor.shape) == 1:
    rows, width, targets = 1, rows, [target[None] for target in targets]
  at_once = max(1, PIECE // (dtype.itemsize * max(width, 1)))  # rows
  try:
    with open(tensor.path, 'rb') as file:
      file.seek(tensor.offset)
      for first in range(0, rows, at_once):
        count = min(at_once, rows - first)
        piece = np.fromfile(file, dtype, count * width).reshape(count, width)
        column = 0
        for target in targets:
          target[first : first + count] = piece[:, column : column + target.shape[1]]
          column += target.shape[1]
  except (OSError, ValueError) as error:
    raise DataError(f'{tensor.path}: cannot be read: {error}') from None


class Entry(NamedTuple):
  """A tensor to write."""

  dtype: str  # as safetensors names it
  shape: tuple


class Writer:
  """Writes a file of {name: Entry}, tensor by tensor in any order: `with Writer(path, entries) as file: file.put(...)`.

  The file is, byte for byte, what the library would write of the same tensors. Raises StorageError.
  """

  def __init__(self, path, entries):
    self._path, self._entries, self._offsets = path, entries, {}
    order = sorted(entries, key=lambda name: (-list(DTYPES).index(entries[name].dtype), name))
    header, end = {'__metadata__': {'format': 'pt'}}, 0
    for name in order:
      dtype, shape = entries[name]
      begin, end = end, end + DTYPES[dtype].itemsize * math.prod(shape)
      header[name] = {'dtype': dtype, 'shape': list(shape), 'data_offsets': [begin, end]}
      self._offsets[name] = begin
    text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode('utf-8')
    text += b' ' * (-len(text) % 8)
    self._start = 8 + len(text)
    with files.storage_errors(path):
      self._file = open(path, 'wb')  # noqa: SIM115 (closed by __exit__)
      self._file.write(struct.pack('<Q', len(text)) + text)
      self._file.truncate(self._start + end)

  def put(self, name, views):
    """Writes a tensor: arrays whose columns (last axis) together are its own, of any float type."""
    dtype, views = DTYPES[self._entries[name].dtype], [np.atleast_2d(view) for view in views]
    rows = [view.reshape(-1, view.shape[-1]) for view in views]
    width = sum(part.shape[1] for part in rows)
    at_once = max(1, PIECE // (dtype.itemsize * max(width, 1)))
    with files.storage_errors(self._path):
      self._file.seek(self._start + self._offsets[name])
      for first in range(0, len(rows[0]), at_once):
        pieces = [part[first : first + at_once].astype(dtype) for part in rows]
        self._file.write(np.concatenate(pieces, axis=-1).tobytes())

  def __enter__(self):
    return self

  def __exit__(self, *_):
    with files.storage_errors(self._path):
      self._file.close()


def shape_of(views):
  """Of the tensor whose columns those of the views are together."""
  return (*views[0].shape[:-1], sum(view.shape[-1] for view in views))
