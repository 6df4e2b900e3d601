"""Folders of Hugging Face's files: which tensors they hold, in one file or in shards; nothing outside is ever read."""

import json
import os
import pathlib

from aigc_jax.errors import DataError, UsageError, listed, nearest
from aigc_jax.safetensors_file import DTYPES, read_header

CONFIG, WEIGHTS, INDEX = 'config.json', 'model.safetensors', 'model.safetensors.index.json'
PICKLED = ('.bin', '.pt', '.pth', '.ckpt', '.pkl')


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


def is_one(folder):
  """Whether a folder is one of a pretrained model, and no run of ours."""
  try:
    config = json.loads((pathlib.Path(folder) / CONFIG).read_bytes())
  except (OSError, ValueError, RecursionError):
    return False
  return isinstance(config, dict) and 'model_type' in config


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
