"""What a program holds on each device, and whether that fits: from XLA's own account of what it compiled."""

import math
import os
import pathlib
import re
from typing import NamedTuple

import jax

from aigc_jax.errors import UsageError
from aigc_jax.training import checkpoint, console
from aigc_jax.training.console import size

LARGE = 0.01  # of all bytes on a device: arrays of less are told together
CGROUPS, OWN_CGROUPS = pathlib.Path('/sys/fs/cgroup'), pathlib.Path('/proc/self/cgroup')
ADVICE = (
  'give --config.parallel.fsdp or .tensor more devices, or try --config.training.microbatches, --config.model.remat, '
  'or a smaller batch'
)
ADVICE_ON_STATE = 'give --config.parallel.fsdp or .tensor more devices, or use a smaller model'


class MemoryUse(NamedTuple):
  """Bytes on each device."""

  arguments: int  # the state, the batch and the floats
  temporaries: int
  outputs: int
  aliased: int  # outputs in the place of arguments

  @property
  def peak(self):
    return self.arguments + self.temporaries + self.outputs - self.aliased

  def __str__(self):
    return (
      f'{size(self.arguments)} arguments, {size(self.temporaries)} temporaries, '
      f'{size(self.outputs - self.aliased)} outputs besides'
    )


def of_program(compiled):
  """The MemoryUse of a compiled program."""
  found = compiled.memory_analysis()
  sizes = (getattr(found, f'{name}_size_in_bytes') for name in ('argument', 'temp', 'output', 'alias'))
  return MemoryUse(*sizes)


def capacity(devices):
  """Bytes that each of a program's devices has, or None where they do not tell.

  CPU devices, of which one may pretend to be several, share what this process may use of the machine's memory.
  """
  here = [device for device in devices if device.process_index == jax.process_index()]
  stats = here[0].memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit']
  if here[0].platform != 'cpu':
    return None
  whole = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return min([whole, *cgroup_limits()]) // len(here)


def cgroup_limits():
  """[bytes] that control groups allow: this process's own, as Slurm makes one for a job, and those above it."""
  limits = []
  for line in OWN_CGROUPS.read_text().splitlines() if OWN_CGROUPS.is_file() else ():
    _, kinds, path = line.split(':', 2)
    if kinds and 'memory' not in kinds.split(','):
      continue
    top, name = (
      (CGROUPS / 'memory', 'memory.limit_in_bytes') if kinds else (CGROUPS, 'memory.max')
    )  # versions 1, 2
    own = top / path.lstrip('/')
    for folder in (own, *own.parents):
      if (folder / name).is_file():
        limits.append((folder / name).read_text().strip())
      if folder == top:
        break
  return [int(text) for text in limits if text.isdecimal()]  # 'max' is no limit


def check(use, devices):
  """Raises UsageError, with the figures, where a step of a compiled program does not fit its devices."""
  limit = capacity(devices)
  if limit is not None and use.peak > limit:
    raise UsageError(
      f'memory: a step needs {size(use.peak)} on each device ({use}), and {described(devices, limit)}; {ADVICE}'
    )


def check_state(state, devices):
  """The same of what is known before anything is compiled: the State, or its shapes, alone."""
  limit, octets = capacity(devices), bytes_of(state)
  if limit is not None and octets > limit:
    params, opt = size(bytes_of((state.params, state.frozen))), size(bytes_of(state.opt))
    raise UsageError(
      f'memory: the state takes {size(octets)} on each device (parameters {params}, optimizer {opt}), and '
      f'{described(devices, limit)}; {ADVICE_ON_STATE}'
    )


def described(devices, limit):
  several = f'each of {len(devices)} ' if len(devices) > 1 else ''
  return f'{several}{devices[0].device_kind} has {size(limit)}'


def bytes_of(tree):
  """Bytes that each device holds of a tree of arrays, or of their ShapeDtypeStructs, with shardings."""
  return sum(map(bytes_on_device, jax.tree.leaves(tree)))


def bytes_on_device(leaf):
  shape = leaf.sharding.shard_shape(leaf.shape)
  width = 8 if checkpoint.is_key(leaf) else leaf.dtype.itemsize
  return math.prod(shape) * width


def alike(leaves):
  """[(path, [leaf])] of {path: leaf}; those that differ in numbers of layers alone are one, 'block_*/mlp/up/kernel'."""
  groups = {}  # (path without numbers, shape, how it lies) -> [(path, leaf)]
  for path, leaf in leaves.items():
    kind = re.sub(r'(?<=[a-z]_)\d+(?=[_/])', '*', path), leaf.shape, spec_text(leaf)
    groups.setdefault(kind, []).append((path, leaf))
  return [
    (kind[0] if len(group) > 1 else group[0][0], [leaf for _, leaf in group])
    for kind, group in groups.items()
  ]


def array_table(state):
  """Lines of path, shape, how it lies on the mesh, and bytes on each device, the largest first."""
  groups = sorted(alike(checkpoint.flat(state)), key=lambda group: -bytes_of(group[1]))
  total = sum(bytes_of(leaves) for _, leaves in groups)
  large = [group for group in groups if bytes_of(group[1]) >= LARGE * total]
  rows = [('array of the state', 'shape', 'axes of the mesh', 'arrays', 'bytes on a device')]
  rows += [
    (path, str(list(leaves[0].shape)), spec_text(leaves[0]), str(len(leaves)), size(bytes_of(leaves)))
    for path, leaves in large
  ]
  for name, several in (('smaller ones', groups[len(large) :]), ('all', groups)):
    arrays = [leaf for _, leaves in several for leaf in leaves]
    if arrays:
      rows.append((name, '', '', str(len(arrays)), size(bytes_of(arrays))))
  return console.table(rows, numbers=(3, 4))


def spec_text(leaf):
  """'fsdp, -, tensor' of an array's axes, or 'whole'."""
  sizes = leaf.sharding.mesh.shape
  names = ['+'.join(a for a in axes_of(axis) if sizes[a] > 1) or '-' for axis in leaf.sharding.spec]
  if set(names) <= {'-'}:
    return 'whole'
  return ', '.join(names + ['-'] * (len(leaf.shape) - len(names)))


def axes_of(part):
  """The axes of a mesh that one entry of a PartitionSpec names."""
  return () if part is None else (part,) if isinstance(part, str) else part
