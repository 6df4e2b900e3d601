"""A folder of Hugging Face as a model config and parameters of ours, and parameters as its tensors."""

import math
import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from aigc_jax import models, safetensors_file
from aigc_jax.config import fields_of, fill_in
from aigc_jax.errors import DataError, UsageError
from aigc_jax.interop import folders, settings, tables


class Row(NamedTuple):
  """A tensor and the parameters in it."""

  name: str
  paths: tuple
  view: Any  # of tables.HOW


class Checkpoint(NamedTuple):
  """What a folder holds, checked; no weight is read yet."""

  folder: pathlib.Path
  config: dict  # the content of config.json
  model: dict  # `config.model`, complete
  shapes: dict  # {our path: ShapeDtypeStruct}
  rows: list  # [Row]
  tensors: dict  # {name as in the table: safetensors_file.Tensor}
  unread: list  # names of tensors that say nothing more


def open_folder(folder):
  """The Checkpoint of a folder. Raises UsageError, DataError: one line; nothing was allocated."""
  folder = pathlib.Path(folder)
  if not folder.is_dir():
    raise UsageError(f'{folder}: no such folder; it takes one with {folders.CONFIG} and {folders.WEIGHTS}')
  path = folders.inside(folder, folders.CONFIG)
  config = folders.read_json(path)
  kind = settings.known(path, config)
  tensors = renamed(tables.TABLES[kind], folders.find(folder))
  model = complete(path, settings.model_of(path, config, tensors), tensors)
  shapes = shapes_of(model)
  rows = rows_of(tables.TABLES[kind], model['name'], shapes)
  wanted = {row.name: shape_in(row, shapes) for row in rows}
  says_nothing = lambda name: any(re.search(pattern, name) for pattern in tables.TABLES[kind].unread)
  unread = {name for name in tensors if name not in wanted and says_nothing(name)}
  kept = {name: tensor for name, tensor in tensors.items() if name not in unread}
  folders.check_names(folder, kept, wanted)
  return Checkpoint(folder, config, model, shapes, rows, kept, sorted(unread))


def renamed(table, tensors):
  """Tensors by their names in the table: a bare model's get the prefix, older names become today's."""
  bare = not any(name.startswith(table.prefix) for name in tensors)
  found = {}
  for name, tensor in tensors.items():
    for old, new in table.renamed:
      name = name.replace(old, new)
    if bare and not name.startswith(table.heads):
      name = table.prefix + name
    found[name] = tensor
  return found


def complete(path, model, tensors):
  """`config.model` with defaults, checked. Raises DataError naming config.json."""
  try:
    given = {name: value for name, value in model.items() if name != 'name'}
    filled = {'name': model['name']} | fill_in(fields_of(models.SCHEMAS[model['name']]), given, 'model')
    check_sizes(filled, tensors)
    models.check(filled)
  except UsageError as error:
    raise DataError(f'{path}: {error}') from None
  return filled


def check_sizes(model, tensors):
  """Raises UsageError for sizes that no such tensors can have, before anything is made of these sizes."""
  numbers = sum(math.prod(tensor.shape) for tensor in tensors.values())
  limits = {'layers': len(tensors), 'context_length': 2**31, 'rotary_context': 2**31}
  for name, value in model.items():
    if isinstance(value, int) and value > limits.get(name, numbers):
      raise UsageError(f'config.model.{name}: {value}, but its tensors hold {numbers:,} numbers')


def shapes_of(model):
  """{path: ShapeDtypeStruct} of the parameters of a complete `config.model`."""
  key, tokens = jax.eval_shape(jax.random.key, 0), jax.ShapeDtypeStruct((1, 1), jnp.int32)
  params = jax.eval_shape(lambda key, tokens: models.build(model).init(key, tokens)['params'], key, tokens)
  return traverse_util.flatten_dict(params, sep='/')


def rows_of(table, name, shapes):
  """[Row] of a table that apply to a model of ours of that name with parameters of these shapes."""
  layers = sum(path.startswith('block_') and path.endswith('/attention/query/kernel') for path in shapes)
  found = []
  for their, ours, how, *models_named in table.rows:
    if models_named and name not in models_named:
      continue
    for i in range(layers) if '{i}' in their else [0]:
      paths = tuple(path.strip().format(i=i) for path in ours.split('+'))
      if all(path in shapes for path in paths):
        found.append(Row(their.format(i=i), paths, tables.HOW[how]))
  covered = {path for row in found for path in row.paths}
  if left := [path for path in shapes if path not in covered]:
    raise UsageError(f'parameter {left[0]!r} has no place in that architecture')
  return found


def views(row, arrays):
  """Of the parameters in a tensor, laid out as the tensor is."""
  return [row.view(arrays[path]) for path in row.paths]


def shape_in(row, shapes):
  """The shape of a tensor, by those of its parameters."""
  empty = {path: np.broadcast_to(np.float32(0), shapes[path].shape) for path in row.paths}
  return safetensors_file.shape_of(views(row, empty))


def read(checkpoint):
  """Yields (path, float32 array on the host) of all parameters, read tensor by tensor."""
  for row in checkpoint.rows:
    arrays = {path: np.empty(checkpoint.shapes[path].shape, np.float32) for path in row.paths}
    safetensors_file.read_into(checkpoint.tensors[row.name], views(row, arrays))
    yield from arrays.items()
