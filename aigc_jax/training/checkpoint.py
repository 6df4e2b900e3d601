"""Checkpoints: saved behind the loop's back, hashed file by file, verified before anything is restored.

A step's folder holds what Orbax writes and, last of all, manifest.json: the shape and dtype of every leaf and
the SHA-256 of every file. Without a manifest there is no checkpoint: a killed save leaves none and is swept
away at the next start. (Orbax by itself restores a flipped bit without a word.)

Leaves are saved flat, under names such as 'params/block_0/mlp/up/kernel'. The structure comes from the target
that is restored into, so optax's states and missing parts need nothing special, and any part can be read
alone. What never changes (`State.frozen`) is saved once, in checkpoints/frozen/.
"""

import concurrent.futures
import contextlib
import functools
import math
import os
import pathlib
import re
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from aigc_jax import files
from aigc_jax.errors import StorageError, UsageError
from aigc_jax.training import processes, streamed
from aigc_jax.training.manifest import MANIFEST, has_manifest, read_manifest, verify, write_manifest
from aigc_jax.training.state_leaves import Leaf, described, flat, is_key, key_types, snapshot

FROZEN, ARRAYS = 'frozen', 'state'
AT_ONCE = 64 << 20  # bytes


class Checkpointer:
  """Writes the checkpoints of one run, one at a time, in its own thread: `with Checkpointer(...) as saver`.

  `newest` is the last step whose checkpoint is complete, or None. An error of a save comes up at the next `save`,
  `wait` or `close`, as a StorageError. Of several processes each has one, and all of them save at once: each writes
  its parts of the arrays, and the first one writes the manifest and sweeps.
  """

  def __init__(self, folder, *, keep, resumed_from=None, best=None):
    """Sweeps away what killed saves left, and what lies beyond the step that the run goes on from.

    Args:
      folder: the run's checkpoints/; made at the first save.
      keep: how many of the newest to keep; the best one is kept besides.
      resumed_from: the restored step; later checkpoints were damaged, or belong to a course that is given up.
      best: {step: metric} -> the steps to keep besides; None: that of the lowest metric.
    """
    self._folder, self._keep = pathlib.Path(folder), keep
    self._best = best or (lambda metrics: {lowest(metrics)})
    self._thread = concurrent.futures.ThreadPoolExecutor(1, 'checkpoint')
    self._pending, self._saved, self.newest = None, None, resumed_from or None
    with files.storage_errors(self._folder):
      for path in self._folder.iterdir() if self._folder.is_dir() and processes.leads() else ():
        ours = re.match(rf'\d+|{FROZEN}\b', path.name)
        later = resumed_from is not None and path.name.isdigit() and int(path.name) > resumed_from
        # Frozen parameters of a start that came to nothing are not those of this one.
        stale = resumed_from == 0 and not path.name.isdigit()
        if ours and (later or stale or not (path / MANIFEST).is_file()):
          remove(path)

  def save(self, step, state, metric=None):
    """Starts saving; returns when `state` is copied to the host, so it may be donated.

    Waits for the save before it, if that is still going on. Saves of the step saved last do nothing.

    Args:
      step: int, names the checkpoint.
      state: State, or any pytree of arrays with a field or key 'frozen' or without.
      metric: float; the checkpoint with the lowest is the best one (an accuracy comes negated). None or NaN: it
        is none. Or a list of such, for a `best` that reads lists.

    Raises:
      StorageError: the save before it failed.
    """
    self.wait()
    if step == self._saved:
      return
    leaves = {n: leaf if hasattr(leaf, 'dtype') else np.asarray(leaf) for n, leaf in flat(state).items()}
    frozen = {n: leaf for n, leaf in leaves.items() if n.startswith(f'{FROZEN}/')}
    moving = {n: leaf for n, leaf in leaves.items() if n not in frozen}
    parts = (
      [(self._folder / FROZEN, frozen, None)] if frozen and not has_manifest(self._folder / FROZEN) else []
    )
    parts.append((self._folder / str(step), moving, metric))
    begun = [
      (folder, begin(folder, snapshot(part)), {n: described(leaf) for n, leaf in part.items()}, metric)
      for folder, part, metric in parts
    ]
    self._saved = step
    self._pending = self._thread.submit(self._write, step, begun)

  def _write(self, step, parts):
    for folder, finish, leaves, metric in parts:
      try:
        finish()
        if processes.leads():
          write_manifest(
            folder, {'metric': number(metric), 'leaves': {n: f._asdict() for n, f in leaves.items()}}
          )
      except (OSError, ValueError, RuntimeError, StorageError) as error:
        with contextlib.suppress(OSError):  # a full disk gets its space back
          remove(folder)
        reason = (getattr(error, 'strerror', None) or str(error)).strip().splitlines() or [repr(error)]
        raise StorageError(f'{folder}: cannot be written: {reason[0]}') from error
    self.newest = step
    if processes.leads():
      with files.storage_errors(self._folder):
        self._retire()

  def _retire(self):
    metrics = metrics_of(self._folder)
    kept = {*sorted(metrics)[-self._keep :], *self._best(metrics)}
    for step in metrics:
      if step not in kept:
        remove(self._folder / str(step))

  def wait(self):
    """Returns when the save that goes on, if any, is complete. Raises StorageError if it failed."""
    pending, self._pending = self._pending, None
    if pending:
      try:
        pending.result()
      except BaseException:
        self._saved = None
        raise

  def close(self):
    try:
      self.wait()
    finally:
      self._thread.shutdown()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def begin(folder, arrays):
  """Writes the arrays by Orbax, when the function that is returned is called, or, of several processes, from now on.

  They exchange something between their devices when they begin, which must not happen beside the steps.
  """

  def save(how):
    if processes.leads():
      remove(folder)
      folder.parent.mkdir(parents=True, exist_ok=True)
    context = ocp.Context()
    context.array.saving.use_compression = False  # it takes time, and weights hardly shrink
    context.memory.deepcopy_host_arrays = False  # `snapshot` has copied what needs it
    context.memory.write_concurrent_bytes = at_once(arrays)
    with context:  # (Orbax refuses empty arrays)
      return how(folder.absolute(), {n: a for n, a in arrays.items() if a.size}, checkpointable_name=ARRAYS)

  from orbax.checkpoint import v1 as ocp

  if not processes.several():
    return functools.partial(save, ocp.save)
  with files.storage_errors(folder):
    return save(ocp.save_async).result


def at_once(arrays):
  """Bytes that Orbax may hold besides the arrays themselves: those of the largest one at least."""
  return max([AT_ONCE, *(math.prod(a.shape) * 8 for a in arrays.values())])


def number(metric):
  if isinstance(metric, list):
    return [number(one) for one in metric]
  return None if metric is None or np.isnan(metric) else float(metric)


def remove(folder):
  """Deletes a checkpoint, its manifest first, and what Orbax left of an unfinished one."""
  (folder / MANIFEST).unlink(missing_ok=True)
  for path in [folder, *folder.parent.glob(f'{folder.name}.*')]:
    shutil.rmtree(path, ignore_errors=True)


def steps(folder):
  """The steps that have a checkpoint, damaged or not, in ascending order."""
  folder = pathlib.Path(folder)
  names = os.listdir(folder) if folder.is_dir() else []
  return sorted(int(name) for name in names if name.isdigit() and has_manifest(folder / name))


def latest(folder):
  """The newest step, or None."""
  return (steps(folder) or [None])[-1]


def best(folder):
  """The step with the lowest metric, or None where no checkpoint has one."""
  return lowest(metrics_of(pathlib.Path(folder)))


def metrics_of(folder):
  """{step: metric or None}."""
  metrics = {}
  for step in steps(folder):
    try:
      metrics[step] = read_manifest(folder / str(step))['metric']
    except StorageError:
      metrics[step] = None
  return metrics


def lowest(metrics):
  return min((s for s in metrics if metrics[s] is not None), key=metrics.get, default=None)


def print_warning(line):
  print(line, file=sys.stderr)


def find_whole(folder, which, warn):
  """(step, manifest) of the checkpoint asked for, verified; of the next best one where that is damaged.

  Of several processes the first one verifies, and all of them take the same.
  """
  step = processes.agree(lambda: whole_step(folder, which, warn))
  return step, read_manifest(folder / str(step))


def whole_step(folder, which, warn):
  metrics = metrics_of(folder)
  order = sorted(metrics, reverse=True)
  if which == 'best':
    order.sort(key=lambda step: math.inf if metrics[step] is None else metrics[step])
  elif which != 'latest':
    order = [int(which)] if str(which).isdigit() and int(which) in metrics else []
  if not order:
    there = ', '.join(map(str, sorted(metrics))) or 'none'
    raise UsageError(f'{folder}: no checkpoint {which!r}; there are: {there}; or ask for best or latest')
  first = None
  for step in order:
    try:
      verify(folder / str(step))
    except StorageError as error:
      if which not in ('latest', 'best'):
        raise
      first = first or error
      warn(f'WARNING: checkpoint {step} is damaged and passed over: {error}')
    else:
      if first:
        warn(f'WARNING: falling back to checkpoint {step}')
      return step
  raise StorageError(f'{folder}: none of its {len(order)} checkpoints is whole; {first}') from first


def restore(folder, target, which='latest', warn=print_warning):
  """Reads a checkpoint into the structure of `target`.

  Args:
    folder: the run's checkpoints/.
    target: a State, or a dict with some of its fields, whose leaves have shape and dtype (arrays or
      ShapeDtypeStruct), and a sharding where one is wanted; the others go to the first device.
    which: 'latest', 'best' (lowest metric), or a step.
    warn: called with one line for each damaged checkpoint that is passed over.

  Returns:
    (step, tree): the tree like `target`, of arrays with the bits that were saved.

  Raises:
    UsageError: there is no such checkpoint; or its leaves are not those of `target` (path and both shapes).
    StorageError: the step asked for by number is damaged, or all are.
  """
  folder = pathlib.Path(folder)
  step, manifest = find_whole(folder, which, warn)
  return step, load(folder, step, manifest, target)


def restore_fields(folder, names, which='latest', warn=print_warning, sharding=None):
  """Like `restore`, of the named fields of the State alone and without a target; all go where `sharding` says.

  Returns (step, {name: nested dict of arrays}); a field without leaves (no 'average' is kept) is left out.
  """
  folder = pathlib.Path(folder)
  step, manifest = find_whole(folder, which, warn)
  return step, load_fields(folder, step, manifest, names, sharding)


def load_fields(folder, step, manifest, names, sharding=None):
  """{name: nested dict of arrays} of the named fields of a checkpoint that `find_whole` found."""
  dtype = lambda leaf: key_types()[leaf.dtype][0] if leaf.dtype.startswith('key<') else jnp.dtype(leaf.dtype)
  shape = lambda leaf: jax.ShapeDtypeStruct(tuple(leaf.shape), dtype(leaf), sharding=sharding)
  target = {path: shape(leaf) for path, leaf in leaves_of(folder, manifest, names).items()}
  return load(folder, step, manifest, traverse_util.unflatten_dict(target, sep='/'))


def restore_params(folder, which, kept, others=(), warn=print_warning):
  """(step, params, fields): the parameters of the field `kept`, frozen ones included, and the `others`."""
  step, fields = restore_fields(folder, (kept, FROZEN, *others), which, warn)
  return step, merge(fields.pop(kept, {}), fields.pop(FROZEN, {})), fields


def merge(params, frozen):
  """Two nested dicts without a common leaf in one."""
  merged = dict(params)
  for name, value in frozen.items():
    merged[name] = merge(merged.get(name, {}), value) if isinstance(value, dict) else value
  return merged


def leaves_of(folder, manifest, names):
  """{path: Leaf} of the named fields, the frozen ones included. Raises StorageError."""
  saved = dict(manifest['leaves'])
  if FROZEN in names and has_manifest(folder / FROZEN):
    saved |= verify(folder / FROZEN)['leaves']
  return {path: Leaf(**leaf) for path, leaf in saved.items() if path.split('/')[0] in names}


def load(folder, step, manifest, target):
  names = getattr(target, '_fields', None) or tuple(target)
  wanted, saved = flat(target), leaves_of(folder, manifest, names)
  check_leaves(folder / str(step), saved, {path: described(leaf) for path, leaf in wanted.items()})
  frozen = {path for path in wanted if path.startswith(f'{FROZEN}/')}
  arrays = read_arrays(folder / FROZEN, {p: leaf for p, leaf in wanted.items() if p in frozen})
  arrays |= read_arrays(folder / str(step), {p: leaf for p, leaf in wanted.items() if p not in frozen})
  return jax.tree.unflatten(jax.tree.structure(target), [arrays[path] for path in wanted])


def check_leaves(folder, saved, wanted):
  """Raises UsageError that names the first leaf that differs, with both shapes."""
  if saved == wanted:
    return
  lines = []
  for path in saved | wanted:
    a, b = saved.get(path), wanted.get(path)
    if a is None or b is None:
      lines.append(f'{path} is {"only in the config" if a is None else "only in the checkpoint"}')
    elif a != b:
      kinds = (f'{a.dtype} ', f'{b.dtype} ') if a.dtype != b.dtype else ('', '')
      lines.append(f'{path} is {kinds[0]}{a.shape} in the checkpoint and {kinds[1]}{b.shape} in the config')
  more = f' (and {len(lines) - 1} more differ)' if len(lines) > 1 else ''
  raise UsageError(f'{folder}: {lines[0]}{more}')


def read_arrays(folder, wanted):
  """{path: array} of the leaves of one checkpoint folder, placed as their shardings say."""
  from orbax.checkpoint import v1 as ocp

  if streamed.is_one(folder):
    return streamed.load(folder, wanted)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  arrays, target = {}, {}
  for path, leaf in wanted.items():
    sharding = getattr(leaf, 'sharding', None) or here
    if is_key(leaf):
      target[path] = jax.eval_shape(jax.random.key_data, leaf).update(sharding=sharding)
    elif 0 in leaf.shape:
      arrays[path] = jax.device_put(np.zeros(leaf.shape, leaf.dtype), sharding)
    else:
      target[path] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
  if target:
    context = ocp.Context()
    context.pytree.loading.partial_load = True
    context.memory.read_concurrent_bytes = at_once(wanted)
    with context:
      arrays |= ocp.load(folder.absolute(), target, checkpointable_name=ARRAYS)
  for path, leaf in wanted.items():
    if is_key(leaf):
      arrays[path] = jax.random.wrap_key_data(arrays[path], impl=key_types()[str(leaf.dtype)][1])
  return arrays
