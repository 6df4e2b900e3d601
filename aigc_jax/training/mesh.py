"""Which devices a run takes, and the mesh they make: axes `data` (rows of the batch), `fsdp` (rows too, and a part of
every array of the state) and `tensor` (a part of every wide array, and of the work on it)."""

import math

import jax
from jax.sharding import AxisType

from aigc_jax.errors import UsageError
from aigc_jax.training import processes

AXES = ('data', 'fsdp', 'tensor')
ROWS = ('data', 'fsdp')  # what the rows of a batch are dealt out over


def choose_devices(config, fewer=False):
  """The devices that the config asks for, of those that are here. Raises UsageError where it does not fit.

  `fewer`: a run made elsewhere goes on with as many as fit, where it asks for more than there are.
  """
  devices = jax.devices()
  sizes = axis_sizes(config, len(devices), fewer)
  if processes.several() and math.prod(sizes) != len(devices):
    raise UsageError(
      f'config.parallel: {product_of(dict(zip(AXES, sizes, strict=True)))} takes {math.prod(sizes)} of the '
      f'{len(devices)} devices of {jax.process_count()} processes, and each must have its part; change the sizes or '
      'config.data.batch_size so that all are taken, or start fewer processes'
    )
  return devices[: math.prod(sizes)]


def make_mesh(config, devices):
  """The Mesh of devices that `choose_devices` gave."""
  sizes = axis_sizes(config, len(devices), fewer=True)
  return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def axis_sizes(config, count, fewer=False):
  """(data, fsdp, tensor) of `count` devices at most; -1 is as many as fit. Raises UsageError where it does not."""
  parallel, rows = config['parallel'], config['data']['batch_size'] // config['training']['microbatches']
  sizes = {axis: parallel[axis] for axis in AXES}
  check_sizes(sizes, parallel['mode'])
  fixed = math.prod(size for size in sizes.values() if size > 0)
  if fixed > count and fewer:  # as much of its layout as fits: rows can go, then the parts of layers
    if sizes['fsdp'] * sizes['tensor'] > count:
      sizes |= {'fsdp': -1 if sizes['fsdp'] > 1 else 1, 'tensor': 1}
    sizes['data'] = 1 if sizes['fsdp'] == -1 else -1
    fixed = math.prod(size for size in sizes.values() if size > 0)
  if fixed > count:
    raise UsageError(
      f'config.parallel: {fixed} devices are wanted ({product_of(sizes)}), {count} are here; use -1 for as many as fit'
    )
  for axis, size in sizes.items():
    if size == -1:
      dealt = math.prod(sizes[other] for other in ROWS if other != axis)
      fits = [n for n in range(1, count // fixed + 1) if axis == 'tensor' or rows % (n * dealt) == 0]
      sizes[axis] = max(fits, default=1)
  if rows % (dealt := sizes['data'] * sizes['fsdp']):
    raise UsageError(
      f'config.parallel: {dealt} devices ({product_of({axis: sizes[axis] for axis in ROWS})}) do not divide the '
      f'{rows} rows of a microbatch'
    )
  return tuple(sizes.values())


def check_sizes(sizes, mode):
  """Raises UsageError for what is wrong with any number of devices."""
  for axis, size in sizes.items():
    if size < 1 and size != -1:
      raise UsageError(
        f'config.parallel.{axis}: {size} is not a device count; it takes -1 (as many as fit) or 1 or more'
      )
    if mode == 'pmap' and axis != 'data' and size != 1:
      raise UsageError(
        f'config.parallel.{axis}: {size}, but with config.parallel.mode=pmap each device has the whole state; use '
        '1, or --config.parallel.mode=mesh'
      )
  rest = [axis for axis, size in sizes.items() if size == -1]
  if len(rest) > 1:
    raise UsageError(
      f'config.parallel: {" and ".join(rest)} are both -1, and one axis alone can take the rest; give the others, '
      f'such as --config.parallel.{rest[0]}=1'
    )


def product_of(sizes):
  """'data 2 x fsdp 4' of {axis: size}, for people."""
  shown = {axis: size for axis, size in sizes.items() if size > 1} or {'data': 1}
  return ' x '.join(f'{axis} {size}' for axis, size in shown.items())
