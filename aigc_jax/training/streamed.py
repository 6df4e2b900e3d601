"""Checkpoints of parameters alone, written and read one array after another, so that memory holds each just once.

What an import makes: Orbax takes a whole state at once. The arrays lie in one safetensors file beside the manifest.
"""

import math

import jax
import numpy as np

from aigc_jax import files
from aigc_jax.errors import DataError, StorageError
from aigc_jax.safetensors_file import Entry, Writer, read_header, read_into
from aigc_jax.training.manifest import write_manifest
from aigc_jax.training.state_leaves import described

FILE, FIELD = 'params.safetensors', 'params'


def save(folder, shapes, arrays):
  """Writes a checkpoint.

  Args:
    folder: of the step; new.
    shapes: {path: ShapeDtypeStruct} of all float32 parameters, such as 'block_0/mlp/up/kernel'.
    arrays: pairs of a path and its array, in any order, taken as they come.

  Raises StorageError.
  """
  with files.storage_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
  entries = {f'{FIELD}/{path}': Entry('F32', tuple(shape.shape)) for path, shape in shapes.items()}
  with Writer(folder / FILE, entries) as file:
    for path, array in arrays:
      file.put(f'{FIELD}/{path}', [array])
  leaves = {f'{FIELD}/{path}': described(shape)._asdict() for path, shape in shapes.items()}
  write_manifest(folder, {'metric': None, 'leaves': leaves})


def is_one(folder):
  return (folder / FILE).is_file()


def load(folder, wanted):
  """{path: array} of {path: ShapeDtypeStruct}, each placed as its sharding says before the next is read."""
  here, found = jax.sharding.SingleDeviceSharding(jax.local_devices()[0]), {}
  try:
    tensors = read_header(folder / FILE)
    for path, leaf in wanted.items():
      array = aligned(leaf.shape)
      read_into(tensors[path], [array.reshape(len(array), -1) if array.ndim > 1 else array])
      found[path] = jax.device_put(array, getattr(leaf, 'sharding', None) or here)
  except DataError as error:
    raise StorageError(str(error)) from None
  return found


def aligned(shape, boundary=64):
  """An empty float32 array that begins where a CPU device takes it as it is, without a copy."""
  size = 4 * math.prod(shape)
  octets = np.empty(size + boundary, np.uint8)
  begin = -octets.ctypes.data % boundary
  return octets[begin : begin + size].view(np.float32).reshape(shape)
