"""What a run starts from: the parameters that `config.init_from` names, as far as the two models are the same.

Heads may be new: what reads the last states, for another task or other classes. So may rows of a larger vocabulary.
"""

import glob
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aigc_jax import run
from aigc_jax.errors import UsageError, listed
from aigc_jax.tasks import lora
from aigc_jax.training import checkpoint

HEADS = ('head', 'masked_head', 'pool')
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
  """The checkpoint that `config.init_from` names."""

  run: run.Run
  which: str  # 'best', 'latest' or a step
  kept: str  # the field of its State with the parameters to use

  @property
  def checkpoints(self):
    return self.run.path / 'checkpoints'


class Plan(NamedTuple):
  """Which parameters come from where, all by their paths."""

  whole: list  # as they are there
  rows: dict  # {path: (axis, count)}: of the tokens that both have; the others are new
  new: list  # as the model begins
  left: list  # there, and not here


def find(path):
  """The Initial of `config.init_from`, None for ''. Raises UsageError."""
  if not path:
    return None
  folder, which = run.of_checkpoint(path)
  if os.path.isfile(os.path.join(folder, 'config.json')) and glob.glob(
    os.path.join(glob.escape(folder), '*.safetensors')
  ):
    raise UsageError(
      f'config.init_from: {folder} holds the files of a pretrained model; make a run of it by `aigc import {folder} '
      'runs/NAME`, and start from that'
    )
  try:
    found = run.open_run(folder)
  except UsageError as error:
    raise UsageError(f'config.init_from: {error}') from None
  if not checkpoint.steps(found.path / 'checkpoints'):
    raise UsageError(f'config.init_from: {path} has no checkpoint yet')
  return Initial(found, which, kept_field(found.config))


def kept_field(config):
  """The field of State with the parameters to use: their moving average where one is kept."""
  return 'params' if config['optimizer'].get('average') is None else 'average'


def saved_leaves(initial):
  """(step, {path: Leaf}) of the parameters there."""
  folder, kept = initial.checkpoints, f'{initial.kept}/'
  at, manifest = checkpoint.find_whole(folder, initial.which, checkpoint.print_warning)
  saved = checkpoint.leaves_of(folder, manifest, (initial.kept, 'frozen'))
  return at, {path.removeprefix(kept).removeprefix('frozen/'): leaf for path, leaf in saved.items()}


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
  at, saved = saved_leaves(initial)
  wanted = {path: checkpoint.described(leaf) for path, leaf in checkpoint.flat(params).items()}
  found = plan(saved, wanted)
  settled = {*found.rows, *found.new, *found.left}
  there, here = ({p: leaf for p, leaf in leaves.items() if p not in settled} for leaves in (saved, wanted))
  named = lambda leaves: {f'params/{path}': leaf for path, leaf in leaves.items()}
  checkpoint.check_leaves(initial.checkpoints / str(at), named(there), named(here))


def overlay(params, saved, lanes=0):
  """Parameters of a fresh state, with those that a checkpoint has in their places.

  Args:
    params: tree of arrays, each where it belongs. saved: nested dicts of arrays. lanes: how many axes at the front of
      `params` number lanes, which all begin alike but for what is new.
  """
  fresh, saved = checkpoint.flat(params), checkpoint.flat(saved)
  shape = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[lanes:], leaf.dtype)
  found = plan(saved, {path: shape(leaf) for path, leaf in fresh.items()})
  made = dict(fresh)
  for path in found.whole:
    made[path] = jax.device_put(jnp.broadcast_to(saved[path], fresh[path].shape), fresh[path].sharding)
  for path, (axis, count) in found.rows.items():
    part = tuple(slice(count) if i == axis else slice(None) for i in range(saved[path].ndim))
    place = (slice(None),) * lanes + part
    made[path] = jax.device_put(fresh[path].at[place].set(saved[path][part]), fresh[path].sharding)
  return jax.tree.unflatten(jax.tree.structure(params), [made[path] for path in fresh])


def saved_params(config):
  """Nested dicts of the parameters that `config.init_from` names."""
  initial = find(config['init_from'])
  _, params, _ = checkpoint.restore_params(initial.checkpoints, initial.which, initial.kept)
  return lora.whole(params, initial.run.config.get('lora'))


def placed(saved, target):
  """Parameters that are all as a checkpoint has them, where `target`, a tree of shapes with shardings, says.

  Raises UsageError where one is new: lanes share what never changes.
  """
  saved, wanted = checkpoint.flat(saved), checkpoint.flat(target)
  whole = set(plan(saved, wanted).whole)
  if new := [path for path in wanted if path not in whole]:
    raise UsageError(
      f'config.training.freeze: {new[0]!r} is new, and would never learn; leave it out of the pattern'
    )
  leaves = [jax.device_put(saved[path], leaf.sharding) for path, leaf in wanted.items()]
  return jax.tree.unflatten(jax.tree.structure(target), leaves)


def told(initial, params):
  """For people: what of the parameters, a tree, comes from there."""
  _, saved = saved_leaves(initial)
  found = plan(saved, checkpoint.flat(params))
  parts = lambda paths: listed(dict.fromkeys(path.split('/')[0] for path in paths))
  line = f'starting from the parameters of {initial.run.path}'
  if found.new:
    line += f'; new: {parts(found.new)}'
  left = [path for path in found.left if not path.startswith(f'{lora.ADAPTERS}/')]  # these are added in
  if left:
    line += f'; left out: {parts(left)}'
  if found.rows:
    _, count = next(iter(found.rows.values()))
    line += f'; of its vocabulary the first {count:,} tokens'
  return line
