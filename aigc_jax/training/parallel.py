"""Where a program's arrays live: one mesh of devices, and the two ways of running the step over it.

`mesh`: one program sees the whole batch, XLA deals it out. `pmap`: each device runs the program on its rows, and sums
are added by `psum`. (`jax.pmap` itself has been jit(shard_map) since JAX 0.8; writing it so keeps every array of the
state in its natural shape, so that checkpoints are the same for both and the state can be donated.)
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.data import batches
from aigc_jax.task import RESIDENT, State
from aigc_jax.training import processes, sharding
from aigc_jax.training.mesh import ROWS, make_mesh
from aigc_jax.training.state_leaves import is_key
from aigc_jax.training.step import make_program


class Parallel(NamedTuple):
  """A program placed on devices: `init`, `step` and `evaluate` as in `Program`, jitted."""

  mesh: Mesh
  init: Callable
  step: Callable  # donates its state
  steps: Callable  # the same, one after another: rows of a batch [steps, rows, ...] -> State, metrics [steps]
  evaluate: Callable
  shardings: Callable  # State of arrays or shapes -> State of NamedShardings: where it lies
  rows: NamedSharding  # of a batch
  replicated: NamedSharding
  part: Any  # which rows of a batch lie on devices of this process, ascending: those that it reads

  def put_batch(self, batch):
    """Host rows, of `part`, -> device rows, dealt out over the mesh."""
    return self.put(batch, self.rows)

  def put_batches(self, batches):
    """Several batches of one shape -> their rows [steps, rows, ...] on the devices."""
    stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *batches)
    return self.put(stacked, self.stacked)

  def put(self, batch, sharding):
    if not processes.several():
      return jax.device_put(batch, sharding)
    return jax.tree.map(partial(jax.make_array_from_process_local_data, sharding), batch)

  def shapes_of(self, batch, steps=1):
    """All rows of a batch on the host -> ShapeDtypeStructs of what `put_batch`, or `put_batches`, gives of them."""
    dtype = lambda array: jax.dtypes.canonicalize_dtype(array.dtype)
    first, where = ((), self.rows) if steps == 1 else ((steps,), self.stacked)
    shape = lambda array: jax.ShapeDtypeStruct((*first, *array.shape), dtype(array), sharding=where)
    return jax.tree.map(shape, batch)

  @property
  def stacked(self):
    """Where several batches lie, [steps, rows, ...]."""
    return NamedSharding(self.mesh, P(None, ROWS))

  def put_resident(self, arrays):
    """A data set that lives on the devices, whole on each -> what every batch has besides its rows."""
    return {RESIDENT: jax.device_put(arrays, self.replicated)} if arrays else {}

  def put_floats(self, floats):
    """{key: float} -> {key: float32 array}, placed once, since a Python float would be weakly typed."""
    return jax.device_put({k: np.float32(v) for k, v in floats.items()}, self.replicated)

  def put_key(self, seed):
    """The PRNG key of a seed; its bits go there, since several processes cannot place keys themselves."""
    bits = np.asarray(jax.random.key_data(jax.random.key(seed)))
    return jax.random.wrap_key_data(jax.device_put(bits, self.replicated))

  def local_copies(self, tree):
    """Arrays that several processes have together -> the same, whole, on a device of this process.

    Every process has to ask at once. With one process, the arrays themselves.
    """
    if not processes.several():
      return tree
    raw = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, tree)
    whole = jax.jit(as_it_is, out_shardings=self.replicated)(raw)
    wrap = lambda leaf, given: jax.random.wrap_key_data(leaf) if is_key(given) else leaf
    return jax.tree.map(lambda leaf, given: wrap(leaf.addressable_data(0), given), whole, tree)


def as_it_is(tree):
  return tree


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
  rows, replicated = NamedSharding(mesh, P(ROWS)), NamedSharding(mesh, P())
  part = own_rows(rows, config['data']['batch_size'])
  return Parallel(mesh, *placed(program, shardings, mesh), shardings, rows, replicated, part)


def own_rows(sharding, count):
  """Which of `count` rows lie on devices of this process: an ascending array, or a slice where it is the only one."""
  if not processes.several():
    return batches.WHOLE
  indices = sharding.addressable_devices_indices_map((count,)).values()
  return np.unique(np.concatenate([np.arange(count)[rows] for (rows,) in indices]))


def placed(program, shardings, mesh):
  """(init, step, steps, evaluate), jitted, whose states lie as `shardings` says and whose metrics are everywhere."""
  lay = lambda state: jax.lax.with_sharding_constraint(state, shardings(state))
  everywhere = lambda tree: jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, P()))

  def init(floats, key, batch):
    return lay(program.init(floats, key, batch))

  def step(floats, state, batch):
    state, metrics = program.step(floats, lay(state), batch)
    return lay(state), everywhere(metrics)

  def steps(floats, state, batches):
    rows = {name: array for name, array in batches.items() if name != RESIDENT}
    whole = {name: array for name, array in batches.items() if name == RESIDENT}
    return jax.lax.scan(lambda state, rows: step(floats, state, rows | whole), state, rows)

  def evaluate(floats, state, batch):
    metrics, extra = program.evaluate(floats, state, batch)
    return everywhere(metrics), lay(state._replace(extra=extra)).extra

  return jax.jit(init), *(jax.jit(f, donate_argnums=1) for f in (step, steps)), jax.jit(evaluate)


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
