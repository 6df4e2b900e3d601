"""Where a program's arrays live: one mesh of devices, and the two ways of running the step over it.

`mesh`: one program sees the whole batch, XLA deals it out. `pmap`: each device runs the program on its rows, and sums
are added by `psum`. (`jax.pmap` itself has been jit(shard_map) since JAX 0.8; writing it so keeps every array of the
state in its natural shape, so that checkpoints are the same for both and the state can be donated.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.errors import UsageError
from aigc_jax.task import RESIDENT, State
from aigc_jax.training.step import make_program

AXIS = 'data'


class Parallel(NamedTuple):
  """A program placed on devices: `init`, `step` and `evaluate` as in `Program`, jitted with fixed shardings."""

  mesh: Mesh
  init: Callable
  step: Callable  # donates its state
  evaluate: Callable
  shardings: Any  # of State, a prefix tree
  rows: NamedSharding  # of a batch
  replicated: NamedSharding

  def put_batch(self, batch):
    """Host rows -> device rows, dealt out over the mesh."""
    return jax.device_put(batch, self.rows)

  def put_resident(self, arrays):
    """A data set that lives on the devices, whole on each -> what every batch has besides its rows."""
    return {RESIDENT: jax.device_put(arrays, self.replicated)} if arrays else {}

  def put_floats(self, floats):
    """{key: float} -> {key: float32 array}, placed once, since a Python float would be weakly typed."""
    return jax.device_put({k: np.float32(v) for k, v in floats.items()}, self.replicated)


def choose_devices(config, fewer=False):
  """The devices that the config asks for, of those that are here. Raises UsageError where it does not fit.

  `fewer`: a run made elsewhere goes on with as many as fit, where it asks for more than there are.
  """
  parallel, rows = config['parallel'], config['data']['batch_size'] // config['training']['microbatches']
  for axis in ('fsdp', 'tensor'):
    if parallel[axis] != 1:
      raise UsageError(f'config.parallel.{axis}: {parallel[axis]} is not built yet; use 1')
  wanted, devices = parallel['data'], jax.devices()
  if wanted == -1 or (fewer and wanted > len(devices)):
    wanted = max(n for n in range(1, len(devices) + 1) if rows % n == 0)
  if wanted < 1:
    raise UsageError(
      f'config.parallel.data: {wanted} is not a device count; it takes -1 (as many as fit) or 1 or more'
    )
  if wanted > len(devices):
    raise UsageError(
      f'config.parallel.data: {wanted} devices are wanted, {len(devices)} are here; use -1 for these'
    )
  if rows % wanted:
    raise UsageError(f'config.parallel.data: {wanted} devices do not divide the {rows} rows of a microbatch')
  return devices[:wanted]


def make_parallel(config, build_task, devices):
  """Places the program of a resolved config.

  Args:
    config: resolved.
    build_task: config with floats -> Task.
    devices: from `choose_devices`.
  """
  mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
  replicated, rows = NamedSharding(mesh, P()), NamedSharding(mesh, P(AXIS))
  specs = state_specs(build_task(config).layout)
  shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda s: isinstance(s, P))
  init, step, evaluate = make_program(config, build_task)
  if config['parallel']['mode'] == 'pmap':
    _, step, evaluate = make_program(config, build_task, AXIS)
    step = by_device(step, mesh, specs, (specs, P()))
    evaluate = by_device(evaluate, mesh, specs, (P(), specs.extra))
  return Parallel(
    mesh,
    jax.jit(init, out_shardings=shardings),
    jax.jit(
      step,
      in_shardings=(replicated, shardings, None),  # None: a batch lies where it was put
      out_shardings=(shardings, replicated),
      donate_argnums=1,
    ),
    jax.jit(
      evaluate,
      in_shardings=(replicated, shardings, None),
      out_shardings=(replicated, shardings.extra),
    ),
    shardings,
    rows,
    replicated,
  )


def by_device(function, mesh, specs, out_specs):
  """function(floats, state, batch) as a program that each device runs on its rows of the batch."""

  def run(floats, state, batch):
    in_specs = P(), specs, {name: P() if name == RESIDENT else P(AXIS) for name in batch}
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(floats, state, batch)

  return run


def state_specs(layout):
  """State of PartitionSpecs, a prefix tree: `extra` lies as its task says, everything else is replicated."""
  extra = jax.tree.map(lambda where: P() if where == 'replicated' else P(AXIS), layout)
  return State(P(), P(), P(), P(), P(), extra, P())


def all_finite(tree):
  """() bool: no float of the tree is NaN or infinite."""
  floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
  return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in floats])) if floats else jnp.bool_(True)
