"""What a run starts from: the parameters that `config.init_from` names, as far as the two models are the same.

Heads may be new: what reads the last states, for another task or other classes. So may rows of a larger vocabulary.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax import run
from aigc_jax.data import tokenizers
from aigc_jax.errors import UsageError, listed
from aigc_jax.interop import checkpoints, folders
from aigc_jax.interop.tokenizer_files import tokenizer_of
from aigc_jax.tasks import lora
from aigc_jax.training import checkpoint

TOKENIZER = 'tokenizer.json'  # in the run folder
HEADS = ('head', 'hidden', 'masked_head', 'pool', 'projection', 'pixel_head', 'blank')
OWN = (*HEADS, lora.ADAPTERS)  # what a run may have that the other has not
# parameters with a row or a column for each token -> which axis that is
BY_TOKEN = {
  'embed/token': 0,
  'head/kernel': 1,
  'masked_head/bias': 0,
  'masked_head/output/kernel': 1,
  'masked_head/output/bias': 0,
}


class Initial(NamedTuple):
  """What `config.init_from` names: a checkpoint of a run, or the files of a pretrained model."""

  path: str  # of the run, or of the files
  at: str  # where the parameters are
  tokenizer: Any  # Tokenizer, or None
  leaves: dict  # {path: Leaf} of the parameters
  arrays: Callable  # () -> pairs of a path and its array, one after another


class Plan(NamedTuple):
  """Which parameters come from where, all by their paths."""

  whole: list  # as they are there
  rows: dict  # {path: (axis, count)}: of the tokens that both have; the others are new
  new: list  # as the model begins
  left: list  # there, and not here


def find(path):
  """The Initial of `config.init_from`, None for ''. Raises UsageError, DataError."""
  if not path:
    return None
  folder, which = run.of_checkpoint(path)
  return of_files(folder) if folders.is_one(folder) else of_run(folder, which)


def of_files(folder):
  found = checkpoints.open_folder(folder)
  leaves = {path: checkpoint.described(shape) for path, shape in found.shapes.items()}
  return Initial(folder, folder, tokenizer_of(found), leaves, lambda: checkpoints.read(found))


def of_run(folder, which):
  try:
    found = run.open_run(folder)
  except UsageError as error:
    raise UsageError(f'config.init_from: {error}') from None
  place = found.path / 'checkpoints'
  if not checkpoint.steps(place):
    raise UsageError(f'config.init_from: {folder} has no checkpoint yet')
  at, manifest = checkpoint.find_whole(place, which, checkpoint.print_warning)
  kept, config = kept_field(found.config), found.config
  fields, file = (kept, checkpoint.FROZEN), found.path / TOKENIZER
  saved = checkpoint.leaves_of(place, manifest, fields)

  def arrays():
    loaded = checkpoint.load_fields(place, at, manifest, fields)
    params = checkpoint.merge(loaded.get(kept, {}), loaded.get(checkpoint.FROZEN, {}))
    return checkpoint.flat(lora.whole(params, config.get('lora'))).items()

  leaves = {path.partition('/')[2]: leaf for path, leaf in saved.items()}
  tokenizer = tokenizers.load(file) if file.exists() else None
  return Initial(str(found.path), str(place / str(at)), tokenizer, leaves, arrays)


def kept_field(config):
  """The field of State with the parameters to use: their moving average where one is kept."""
  return 'params' if config['optimizer'].get('average') is None else 'average'


def plan(saved, wanted):
  """The Plan for parameters that are there and here, {path: Leaf or array} each."""
  own = lambda path: path.split('/')[0] in OWN
  found = Plan([], {}, [], [path for path in saved if path not in wanted and own(path)])
  for path, leaf in wanted.items():
    there, here = tuple(saved[path].shape) if path in saved else None, tuple(leaf.shape)
    axis = BY_TOKEN.get(path)
    if there == here:
      found.whole.append(path)
    elif there and axis is not None and differs_in(there, here, axis) and by_token(saved, there[axis]):
      found.rows[path] = axis, min(there[axis], here[axis])
    elif own(path):
      found.new.append(path)
  return found


def differs_in(there, here, axis):
  return len(there) == len(here) and all(
    a == b for i, (a, b) in enumerate(zip(there, here, strict=True)) if i != axis
  )


def by_token(saved, size):
  """Whether an axis of that size is one of tokens, and not of classes."""
  return 'embed/token' in saved and saved['embed/token'].shape[0] == size


def check(initial, params):
  """Raises UsageError where a parameter, a tree of shapes, cannot begin as it is there, and is no head's."""
  wanted = {path: checkpoint.described(leaf) for path, leaf in checkpoint.flat(params).items()}
  found = plan(initial.leaves, wanted)
  settled = {*found.rows, *found.new, *found.left}
  named = lambda leaves: {f'params/{path}': leaf for path, leaf in leaves.items() if path not in settled}
  checkpoint.check_leaves(initial.at, named(initial.leaves), named(wanted))


def check_new(initial, params, frozen, config):
  """Raises UsageError where something is new that `config` freezes: noise that would stay noise.

  params, frozen: trees of shapes, the latter with holes where parameters learn.
  """
  wanted = {path: checkpoint.described(leaf) for path, leaf in checkpoint.flat(params).items()}
  found, fixed = plan(initial.leaves, wanted), checkpoint.flat(frozen)
  grown = [path for path, (axis, count) in found.rows.items() if count < wanted[path].shape[axis]]
  new = [path for path in (*found.new, *grown) if path in fixed]
  if not new:
    return
  what = 'is new' if new[0] in found.new else 'has rows that are new'
  if config['lora']['rank'] is None:
    raise UsageError(
      f'config.training.freeze: {new[0]!r} {what}, and would never learn; leave it out of the pattern'
    )
  parts = '|'.join(dict.fromkeys(path if path in grown else path.split('/')[0] for path in new))
  given = f'{config["lora"]["trained"]}|' if config['lora']['trained'] else ''
  raise UsageError(
    f'config.lora.trained: {new[0]!r} {what}, and would never learn; use --config.lora.trained="{given}^({parts})"'
  )


def overlay(trees, initial, lanes=0):
  """Parameters of a fresh state, with those that an Initial has in their places, put there one after another.

  Args:
    trees: of arrays, each where it belongs; together they have each parameter once.
    lanes: how many axes at the front of the arrays number lanes, which all begin alike but for what is new.

  Returns:
    Such trees.
  """
  made = {path: leaf for tree in trees for path, leaf in checkpoint.flat(tree).items()}
  shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[lanes:], leaf.dtype)
  found = plan(initial.leaves, {path: shape(leaf) for path, leaf in made.items()})
  whole = set(found.whole)
  for path, array in initial.arrays():
    if path in whole:
      array = jnp.broadcast_to(array, made[path].shape) if lanes else array
      made[path] = jax.device_put(array, made[path].sharding)
    elif path in found.rows:
      axis, count = found.rows[path]
      part = tuple(slice(count) if i == axis else slice(None) for i in range(array.ndim))
      place = (slice(None),) * lanes + part
      made[path] = jax.device_put(made[path].at[place].set(array[part]), made[path].sharding)
  return [jax.tree.unflatten(jax.tree.structure(t), [made[p] for p in checkpoint.flat(t)]) for t in trees]


def placed(initial, target):
  """Parameters that are all as an Initial has them, where `target`, a tree of shapes with shardings, says.

  Raises UsageError where one is new: lanes share what never changes.
  """
  wanted = checkpoint.flat(target)
  whole = set(plan(initial.leaves, wanted).whole)
  if new := [path for path in wanted if path not in whole]:
    raise UsageError(
      f'config.training.freeze: {new[0]!r} is new, and would never learn; leave it out of the pattern'
    )
  found = {p: jax.device_put(array, wanted[p].sharding) for p, array in initial.arrays() if p in whole}
  return jax.tree.unflatten(jax.tree.structure(target), [found[path] for path in wanted])


def told(initial, params):
  """For people: what of the parameters, a tree, comes from there."""
  found = plan(initial.leaves, checkpoint.flat(params))
  parts = lambda paths: listed(dict.fromkeys(path.split('/')[0] for path in paths))
  line = f'starting from the parameters of {initial.path}'
  if found.new:
    line += f'; new: {parts(found.new)}'
  left = [path for path in found.left if not path.startswith(f'{lora.ADAPTERS}/')]  # these are added in
  if left:
    line += f'; left out: {parts(left)}'
  if found.rows:
    _, count = next(iter(found.rows.values()))
    line += f'; of its vocabulary the first {count:,} tokens'
  return line
