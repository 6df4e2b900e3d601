"""Which devices a run takes, and the mesh they make: axes `data` (rows of the batch), `fsdp` (rows too, and a part of
every array of the state) and `tensor` (a part of every wide array, and of the work on it)."""

import math

import jax
from jax.sharding import AxisType

from aigc_jax.errors import UsageError, listed
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
  """(data, fsdp, tensor) of `count` devices at most; -1 is as many as fit. Raises UsageError where it does not.

  Of `data` and another axis that are both -1, the other one takes all.
  """
  parallel, rows = config['parallel'], dealt_rows(config)
  sizes = {axis: parallel[axis] for axis in AXES}
  # -1 is what `data` has unless it is given
  if sizes['data'] == -1 and -1 in (sizes['fsdp'], sizes['tensor']):
    sizes['data'] = 1
  check_sizes(sizes, parallel['mode'])
  if fixed_part(sizes) > count and fewer:
    sizes |= what_fits(sizes, count)
  if (fixed := fixed_part(sizes)) > count:
    raise UsageError(f'{told(sizes)} are wanted, {count} are here; use -1 for as many as fit')
  for axis, size in sizes.items():
    if size == -1:
      dealt = math.prod(sizes[other] for other in ROWS if other != axis)
      fits = [n for n in range(1, count // fixed + 1) if axis == 'tensor' or rows % (n * dealt) == 0]
      sizes[axis] = max(fits, default=1)
  check_rows(sizes, rows, count, config)
  return tuple(sizes.values())


def dealt_rows(config):
  """What devices have equal parts of: the rows of a microbatch and, where worlds are acted in, these too."""
  rows = config['data']['batch_size'] // config['training']['microbatches']
  return math.gcd(rows, config['data'].get('environments', 0))


def fixed_part(sizes):
  """The devices that are asked for by number."""
  return math.prod(size for size in sizes.values() if size > 0)


def what_fits(sizes, count):
  """{axis: size} to replace, where `count` devices are too few: as much of the layout as fits.

  The parts of the rows go first, then those of layers, then those of the state, without which it may not fit.
  """
  fsdp, tensor = sizes['fsdp'], sizes['tensor']
  if fixed_part({'fsdp': fsdp, 'tensor': tensor}) <= count:
    return {'data': 1 if -1 in (fsdp, tensor) else -1}
  if fsdp != 1:
    return {'data': 1, 'fsdp': -1, 'tensor': 1}
  # what the whole number divided, a divisor of it divides too
  return {'data': -1, 'tensor': max(n for n in range(1, count + 1) if tensor % n == 0)}


def told_rows(config):
  """For people: '16 rows of a batch'."""
  microbatches, worlds = config['training']['microbatches'], config['data'].get('environments')
  rows = f'{config["data"]["batch_size"] // microbatches} rows of a {"microbatch" if microbatches > 1 else "batch"}'
  return f'{worlds} environments and the {rows}' if worlds else rows


def check_rows(sizes, rows, count, config):
  """Raises UsageError where the rows of a batch cannot be dealt out evenly."""
  among = {axis: sizes[axis] for axis in ROWS}
  if rows % math.prod(among.values()):
    good = [n for n in range(1, count // sizes['tensor'] + 1) if rows % n == 0]
    raise UsageError(
      f'{told(among)} do not divide the {told_rows(config)}; '
      f'use {" x ".join(axis for axis in among if among[axis] > 1)} among {listed(good)}'
    )


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


def told(sizes):
  """How a line on wrong sizes begins: the key, and how many devices."""
  large = {axis: size for axis, size in sizes.items() if size > 1}
  if len(large) == 1:
    ((axis, size),) = large.items()
    return f'config.parallel.{axis}: {size} devices'
  return f'config.parallel: {math.prod(large.values())} devices ({product_of(sizes)})'


def product_of(sizes):
  """'data 2 x fsdp 4' of {axis: size}, for people."""
  shown = {axis: size for axis, size in sizes.items() if size > 1} or {'data': 1}
  return ' x '.join(f'{axis} {size}' for axis, size in shown.items())
