"""What a program holds on each device, and whether that fits: from XLA's own account of what it compiled."""

import math
import os
import pathlib
import re
from typing import NamedTuple

import jax

from aigc_jax.errors import UsageError
from aigc_jax.training import checkpoint
from aigc_jax.training.console import size

LARGE = 0.01  # of all bytes on a device: arrays of less are told together
CGROUP = pathlib.Path('/sys/fs/cgroup/memory.max')  # what a container may use; 'max' where it has no limit


class MemoryUse(NamedTuple):
  """Bytes on each device."""

  arguments: int  # the state, the batch and the floats
  temporaries: int
  outputs: int
  aliased: int  # outputs in the place of arguments

  @property
  def peak(self):
    return self.arguments + self.temporaries + self.outputs - self.aliased


def of_program(compiled):
  """The MemoryUse of a compiled program."""
  found = compiled.memory_analysis()
  sizes = (getattr(found, f'{name}_size_in_bytes') for name in ('argument', 'temp', 'output', 'alias'))
  return MemoryUse(*sizes)


def capacity(device):
  """Bytes that a device has, or None where it does not tell; pretended devices share the machine's memory."""
  stats = device.memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit']
  if device.platform != 'cpu':
    return None
  whole = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  limit = CGROUP.read_text().strip() if CGROUP.is_file() else 'max'
  return min(whole, int(limit) if limit.isdecimal() else whole) // jax.local_device_count()


def check(use, device, advice=''):
  """Raises UsageError, with the figures, where a program does not fit a device."""
  limit = capacity(device)
  if limit is not None and use.peak > limit:
    raise UsageError(
      f'memory: a step needs {size(use.peak)} on each device ({size(use.arguments)} arguments, '
      f'{size(use.temporaries)} temporaries, {size(use.outputs - use.aliased)} outputs besides), and '
      f'{device.device_kind} has {size(limit)}{advice}'
    )


def bytes_on_device(leaf):
  """Of an array, or its ShapeDtypeStruct, with a sharding: the bytes of the part that each device holds."""
  shape = leaf.sharding.shard_shape(leaf.shape)
  width = 8 if checkpoint.is_key(leaf) else leaf.dtype.itemsize
  return math.prod(shape) * width


def bytes_of_state(state):
  """The MemoryUse of a State, or of its shapes, alone."""
  return MemoryUse(sum(map(bytes_on_device, jax.tree.leaves(state))), 0, 0, 0)


def array_table(state):
  """Lines of path, shape, how it lies on the mesh, and bytes on each device, the largest first.

  Arrays that differ in nothing but numbers in their paths, as those of a model's layers do, are one line.
  """
  groups = {}  # (path without numbers, shape, axes) -> [arrays, bytes]
  for path, leaf in checkpoint.flat(state).items():
    kind = re.sub(r'(?<=[a-z]_)\d+(?=[_/])', '*', path), str(list(leaf.shape)), spec_text(leaf)
    count, octets = groups.get(kind, (0, 0))
    groups[kind] = count + 1, octets + bytes_on_device(leaf)
  total = sum(octets for _, octets in groups.values())
  rows = [
    ('array', 'shape', 'axes of the mesh', 'arrays', 'bytes a device'),
    ('all', '', '', '', size(total)),
  ]
  small = [0, 0]
  for kind, (count, octets) in sorted(groups.items(), key=lambda item: item[1][1]):
    if octets < LARGE * total:
      small = [small[0] + count, small[1] + octets]
    else:
      rows.insert(1, (*kind, str(count), size(octets)))
  if small[0]:
    rows.insert(-1, ('smaller ones', '', '', str(small[0]), size(small[1])))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ['  '.join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)).rstrip() for row in rows]


def spec_text(leaf):
  """'fsdp, -, tensor' of an array's axes, or 'whole'."""
  spec = leaf.sharding.spec
  if not any(spec):
    return 'whole'
  names = [axis if isinstance(axis, str) else '+'.join(axis) if axis else '-' for axis in spec]
  return ', '.join(names + ['-'] * (len(leaf.shape) - len(names)))
