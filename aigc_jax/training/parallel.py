"""Where a program's arrays live: one mesh of devices, and the two ways of running the step over it.

`mesh`: one program sees the whole batch, XLA deals it out. `pmap`: each device runs the program on its rows, and sums
are added by `psum`. (`jax.pmap` itself has been jit(shard_map) since JAX 0.8; writing it so keeps every array of the
state in its natural shape, so that checkpoints are the same for both and the state can be donated.)
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.task import RESIDENT, State
from aigc_jax.training import sharding
from aigc_jax.training.mesh import ROWS, make_mesh
from aigc_jax.training.step import make_program


class Parallel(NamedTuple):
  """A program placed on devices: `init`, `step` and `evaluate` as in `Program`, jitted."""

  mesh: Mesh
  init: Callable
  step: Callable  # donates its state
  evaluate: Callable
  shardings: Callable  # State of arrays or shapes -> State of NamedShardings: where it lies
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


def make_parallel(config, build_task, devices):
  """Places the program of a resolved config.

  Args:
    config: resolved.
    build_task: config with floats -> Task.
    devices: from `mesh.choose_devices`.
  """
  mesh = make_mesh(config, devices)
  layout, by_devices = build_task(config).layout, config['parallel']['mode'] == 'pmap'
  shardings = partial(sharding.of_state, mesh, layout)
  dtype = jnp.dtype(config['training']['precision'])
  build = lambda config: sharding.gathering(build_task(config), mesh, dtype)
  program = make_program(config, build)
  if by_devices:
    specs, inner = state_specs(layout), make_program(config, build, 'data')
    program = program._replace(
      step=by_device(inner.step, mesh, specs, (specs, P())),
      evaluate=by_device(inner.evaluate, mesh, specs, (P(), specs.extra)),
    )
  return Parallel(
    mesh, *placed(program, shardings, mesh), shardings, NamedSharding(mesh, P(ROWS)), NamedSharding(mesh, P())
  )


def placed(program, shardings, mesh):
  """(init, step, evaluate), jitted, whose states lie as `shardings` says and whose metrics are everywhere."""
  lay = lambda state: jax.lax.with_sharding_constraint(state, shardings(state))
  everywhere = lambda tree: jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))

  def init(floats, key, batch):
    return lay(program.init(floats, key, batch))

  def step(floats, state, batch):
    state, metrics = program.step(floats, lay(state), batch)
    return lay(state), everywhere(metrics)

  def evaluate(floats, state, batch):
    metrics, extra = program.evaluate(floats, state, batch)
    return everywhere(metrics), lay(state._replace(extra=extra)).extra

  return jax.jit(init), jax.jit(step, donate_argnums=1), jax.jit(evaluate)


def by_device(function, mesh, specs, out_specs):
  """function(floats, state, batch) as a program that each device runs on its rows of the batch."""

  def run(floats, state, batch):
    in_specs = P(), specs, {name: P() if name == RESIDENT else P('data') for name in batch}
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(floats, state, batch)

  return run


def state_specs(layout):
  """State of PartitionSpecs, a prefix tree: `extra` lies as its task says, everything else is replicated."""
  extra = jax.tree.map(lambda where: P() if where == 'replicated' else P('data'), layout)
  return State(P(), P(), P(), P(), P(), extra, P())


def all_finite(tree):
  """() bool: no float of the tree is NaN or infinite."""
  floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
  return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in floats])) if floats else jnp.bool_(True)
