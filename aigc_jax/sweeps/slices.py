"""The stacked checkpoints of a group of lanes, and the trials' own that they become."""

import contextlib
import os
import shutil

import jax
import numpy as np

from aigc_jax.task import State
from aigc_jax.training import checkpoint
from aigc_jax.training.state_leaves import flat, is_key


def best_of_each(metrics):
  """{step: [metric of each lane or None]} -> the steps at which some lane was best; for `Checkpointer`'s `best`."""
  lanes = max((len(found) for found in metrics.values() if found), default=0)
  return {checkpoint.lowest(of_lane(metrics, lane)) for lane in range(lanes)}


def of_lane(metrics, lane):
  """{step: [metrics]} -> {step: the metric of one lane or None}."""
  return {step: found[lane] if found else None for step, found in metrics.items()}


def to_keep(metrics, keep):
  """The steps that a run of its own would have kept of {step: metric or None}."""
  return {*sorted(metrics)[-keep:], checkpoint.lowest(metrics)} - {None}


def host_copy(state):
  """A State -> {field: tree of numpy arrays}; of keys their bits, see `lane_of`."""
  fields = state._asdict() if hasattr(state, '_asdict') else state
  return jax.device_get(
    jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, fields)
  )


def lane_of(fields, lane, frozen):
  """One lane of what `host_copy` gave. `frozen`: the lane axis of frozen parameters, 0, or None: lanes share them."""
  axis = lambda name: frozen if name == 'frozen' else 0
  picked = {
    name: jax.tree.map(lambda leaf: leaf if axis(name) is None else leaf[lane], tree)
    for name, tree in fields.items()
  }
  return picked | {'key': jax.random.wrap_key_data(np.asarray(picked['key']))}


def in_memory():
  """Where arrays lie in this machine's memory, wherever the lanes live."""
  return jax.sharding.SingleDeviceSharding(jax.local_devices(backend='cpu')[0])


def hand_over(stacked, frozen, keep, lanes, final=None):
  """Writes the checkpoints of lanes that have ended into their own folders, those that solo runs would have kept.

  Args:
    stacked: the group's checkpoints/.
    frozen: the lane axis of frozen parameters, 0 or None.
    lanes: {lane: (its checkpoints/, the last step of a stacked checkpoint that is good for it or None)}.
    final: (step, `host_copy` of a stacked State, {lane: metric or None}) that is saved besides; None: nothing.
  """
  metrics, wanted = checkpoint.metrics_of(stacked), {}
  for lane, (_, last) in lanes.items():
    mine = {step: m for step, m in of_lane(metrics, lane).items() if last is None or step <= last}
    course = mine | ({final[0]: final[2].get(lane)} if final else {})
    for step in to_keep(course, keep) & mine.keys():
      wanted.setdefault(step, []).append(lane)
  if final:
    wanted.pop(final[0], None)
  for step in sorted(wanted):
    _, fields = checkpoint.restore_fields(stacked, State._fields, step, sharding=in_memory())
    at = {lane: metrics[step][lane] if metrics[step] else None for lane in wanted[step]}
    save(step, host_copy(fields), frozen, keep, {lane: lanes[lane][0] for lane in wanted[step]}, at)
  if final:
    save(final[0], final[1], frozen, keep, {lane: lanes[lane][0] for lane in lanes}, final[2])


def save(step, state, frozen, keep, folders, metrics):
  """One checkpoint of each lane, {lane: folder}, of what `host_copy` gave of a stacked State."""
  first = None
  for lane, folder in folders.items():
    if frozen is None and first is not None:
      share(first / checkpoint.FROZEN, folder / checkpoint.FROZEN)
    with checkpoint.Checkpointer(folder, keep=keep) as checkpointer:
      checkpointer.save(step, lane_of(state, lane, frozen), metrics.get(lane))
    first = first or folder


def share(source, place):
  """A copy of the frozen parameters, which takes no room where the disk can link files."""
  if not source.is_dir() or place.exists():
    return

  def link(a, b):
    try:
      os.link(a, b)
    except OSError:
      shutil.copy2(a, b)

  made = place.with_name(f'{place.name}.linking')
  shutil.rmtree(made, ignore_errors=True)
  shutil.copytree(source, made, copy_function=link)
  with contextlib.suppress(FileExistsError):
    made.rename(place)


def gather(folders, target, frozen, count):
  """(step, stacked State) of the newest checkpoints of the trials themselves, or None where these are not of one step.

  Args:
    folders: the checkpoints/ of each lane. target: shapes of a stacked State, with shardings. count: lanes in all,
      those that fill up included.
  """
  newest = {checkpoint.latest(folder) for folder in folders}
  if len(newest) > 1 or None in newest:
    return None
  found = [checkpoint.restore_fields(folder, State._fields, sharding=in_memory()) for folder in folders]
  if len({step for step, _ in found}) > 1:
    return None
  states = [host_copy(fields) for _, fields in found]
  states += states[-1:] * (count - len(states))
  stack = lambda name: (
    states[0][name]
    if name == 'frozen' and frozen is None
    else jax.tree.map(lambda *leaves: np.stack(leaves), *(fields[name] for fields in states))
  )
  return found[0][0], on_devices({name: stack(name) for name in states[0]}, target)


def on_devices(fields, target):
  """What `host_copy` gave, read by `restore_fields`, where `target` says and in its structure."""
  arrays, wanted = flat(fields), flat(target)
  placed = [put(arrays[path], leaf) for path, leaf in wanted.items()]
  return jax.tree.unflatten(jax.tree.structure(target), placed)


def put(array, leaf):
  if is_key(leaf):
    return jax.random.wrap_key_data(jax.device_put(np.asarray(array), leaf.sharding))
  return jax.device_put(array, leaf.sharding)
