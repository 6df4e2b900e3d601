"""Folders of safetensors: what is in them, tensors read piece by piece into arrays that are there, and written so.

The `safetensors` library checks headers (their size, JSON, overlapping or missing bytes) before anything is allocated.
Its own readers map a file, whose pages count as memory until the file is closed, and copy a tensor whole; here pieces
are read to where they belong.
"""

import json
import os
import pathlib
import struct
from typing import NamedTuple

import numpy as np
from ml_dtypes import bfloat16

from aigc_jax import files
from aigc_jax.errors import DataError, UsageError, listed, nearest

WEIGHTS, INDEX = 'model.safetensors', 'model.safetensors.index.json'
# in the library's order: it writes the last of these first
DTYPES = {'F16': np.dtype(np.float16), 'BF16': np.dtype(bfloat16), 'F32': np.dtype(np.float32)}
OTHER_SIZES = {
  'I64': 8,
  'F64': 8,
  'U64': 8,
  'C64': 8,
  'I32': 4,
  'U32': 4,
  'I16': 2,
  'U16': 2,
}  # bytes; 1 else
PIECE = 16 << 20  # bytes read at once
PICKLED = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')


class Tensor(NamedTuple):
  """Where a tensor lies."""

  path: pathlib.Path
  offset: int  # bytes
  dtype: str  # as safetensors names it, such as 'BF16'
  shape: tuple


def inside(folder, name):
  """The path of a file of a folder. Raises DataError where the name, or a link, leads out of it.

  A folder of the Hugging Face hub's own cache may link to the blobs beside its snapshots.
  """
  folder = pathlib.Path(folder).absolute()
  allowed = [folder.resolve()]
  if folder.parent.name == 'snapshots':
    allowed.append((folder.parent.parent / 'blobs').resolve())
  if not isinstance(name, str) or os.path.basename(name) != name or name in ('', '.', '..'):
    raise DataError(f'{folder}: {name!r} is no name of a file in it')
  path = folder / name
  if not any(path.resolve().is_relative_to(place) for place in allowed):
    raise DataError(
      f'{path}: is a link that leads out of the folder, to {path.resolve()}; put the file itself there'
    )
  return path


def find(folder):
  """{name: Tensor} of a folder's safetensors, single or sharded. Raises UsageError, DataError."""
  folder = pathlib.Path(folder)
  if inside(folder, INDEX).exists():
    return find_shards(folder)
  if inside(folder, WEIGHTS).exists():
    return read_header(inside(folder, WEIGHTS))
  there = sorted(path.name for path in folder.iterdir())
  pickled = [name for name in there if name.endswith(PICKLED)]
  if pickled:
    raise UsageError(
      f'{folder / pickled[0]}: is pickled, and unpickling may run any code that its author put there; save the model '
      f'as safetensors, by save_pretrained(..., safe_serialization=True), and import that folder'
    )
  raise UsageError(f'{folder}: has neither {WEIGHTS} nor {INDEX}; it has {listed(there[:8]) or "nothing"}')


def find_shards(folder):
  path = inside(folder, INDEX)
  index = read_json(path)
  where = index.get('weight_map') if isinstance(index, dict) else None
  if not isinstance(where, dict) or not where:
    raise DataError(f'{path}: has no "weight_map" from tensors to files')
  shards, found, where = {}, {}, {name: str(shard) for name, shard in where.items()}
  for name in dict.fromkeys(where.values()):
    shard = inside(folder, name)
    if not shard.exists():
      raise DataError(f'{path}: names the file {name!r}, which is not there')
    shards[name] = read_header(shard)
  for name, shard in where.items():
    if name not in shards[shard]:
      raise DataError(f'{path}: says that tensor {name!r} is in {shard!r}, but it is not')
    found[name] = shards[shard][name]
  return found


def read_header(path):
  """{name: Tensor} of one file. Raises DataError."""
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(path, framework='np') as file:
      slices = {name: file.get_slice(name) for name in file.offset_keys()}  # in the order of their bytes
      described = [(name, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()]
    with open(path, 'rb') as stream:
      (header,) = struct.unpack('<Q', stream.read(8))
    total = os.path.getsize(path)
  except (SafetensorError, OSError) as error:
    reason = str(error).removeprefix('Error while deserializing header: ')
    raise DataError(f'{path}: is no whole safetensors file: {reason}') from None
  found, offset = {}, 8 + header
  for name, dtype, shape in described:
    itemsize = DTYPES[dtype].itemsize if dtype in DTYPES else OTHER_SIZES.get(dtype, 1)
    found[name] = Tensor(pathlib.Path(path), offset, dtype, shape)
    offset += itemsize * int(np.prod(shape, dtype=object))
  if offset != total:
    raise DataError(
      f'{path}: has tensors of a type that is not read here; save it as float32, float16 or bfloat16'
    )
  return found


def read_json(path):
  """The JSON of a file of another's folder. Raises UsageError, DataError."""
  try:
    return json.loads(pathlib.Path(path).read_bytes())
  except FileNotFoundError:
    raise UsageError(f'{path}: no such file; a folder of Hugging Face has one') from None
  except OSError as error:
    raise DataError(f'{path}: cannot be read: {error.strerror}') from None
  except (ValueError, RecursionError) as error:
    raise DataError(f'{path}: is no JSON: {str(error) or type(error).__name__}') from None


def read_into(tensor, targets):
  """Reads a tensor, as float32, into arrays.

  Args:
    targets: views whose columns (last axis) together are those of the tensor: [rows, columns] or [columns] each.
  """
  dtype, rows, width = DTYPES[tensor.dtype], tensor.shape[0], int(np.prod(tensor.shape[1:], dtype=int))
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


class Whole(NamedTuple):
  """A tensor to write."""

  dtype: str  # as safetensors names it
  views: list  # whose columns together are its own, float32


def shape_of(views):
  return (*views[0].shape[:-1], sum(view.shape[-1] for view in views))


def write(path, tensors):
  """Writes {name: Whole} as one file, piece by piece, as the library would, byte for byte. Raises StorageError."""
  order = sorted(tensors, key=lambda name: (-list(DTYPES).index(tensors[name].dtype), name))
  header, offset = {'__metadata__': {'format': 'pt'}}, 0
  for name in order:
    shape = shape_of(tensors[name].views)
    size = DTYPES[tensors[name].dtype].itemsize * int(np.prod(shape, dtype=int))
    header[name] = {
      'dtype': tensors[name].dtype,
      'shape': list(shape),
      'data_offsets': [offset, offset + size],
    }
    offset += size
  text = json.dumps(header, separators=(',', ':'), ensure_ascii=False).encode('utf-8')
  text += b' ' * (-len(text) % 8)
  with files.storage_errors(path), open(path, 'wb') as file:
    file.write(struct.pack('<Q', len(text)) + text)
    for name in order:
      write_pieces(file, tensors[name])


def write_pieces(file, tensor):
  dtype, views = DTYPES[tensor.dtype], [np.atleast_2d(view) for view in tensor.views]
  rows, width = shape_of(views)
  at_once = max(1, PIECE // (dtype.itemsize * max(width, 1)))
  for first in range(0, rows, at_once):
    pieces = [view[first : first + at_once].astype(dtype) for view in views]
    file.write(np.ascontiguousarray(np.concatenate(pieces, axis=-1)).tobytes())


def check_names(folder, found, wanted):
  """Raises DataError where a folder's tensors {name: shape} are not those that are wanted."""
  missing = [name for name in wanted if name not in found]
  surplus = [name for name in found if name not in wanted]
  if missing:
    more = f' (and {len(missing) - 1} more)' if len(missing) > 1 else ''
    close = nearest(missing[0], surplus).strip()
    raise DataError(f'{folder}: tensor {missing[0]!r} is missing{more}{"; " + close if close else ""}')
  if surplus:
    more = f' (and {len(surplus) - 1} more)' if len(surplus) > 1 else ''
    raise DataError(f'{folder}: has a tensor {surplus[0]!r}{more} that its config.json has no place for')
  for name, shape in wanted.items():
    if tuple(found[name].shape) != tuple(shape):
      raise DataError(
        f'{folder}: tensor {name!r} is {list(found[name].shape)}, and by its config.json {list(shape)}'
      )
    if found[name].dtype not in DTYPES:
      raise DataError(
        f'{folder}: tensor {name!r} is of type {found[name].dtype}; weights are {listed(DTYPES)}'
      )
