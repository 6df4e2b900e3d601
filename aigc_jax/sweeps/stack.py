"""Trials as lanes of one compiled program: stacked arrays, and the lane axis dealt out over the devices.

Each device runs the vmapped step on lanes of its own and exchanges nothing, so any number of devices gives the numbers
of one. Lanes are filled up to a multiple of the devices with copies of the last one, which nobody reads.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax import tasks
from aigc_jax.config import floats_of
from aigc_jax.data import batches
from aigc_jax.task import RESIDENT, State
from aigc_jax.training import attention, experiment, placement, step
from aigc_jax.training.loop import FINITE

LANES = 'lanes'


class Carry(NamedTuple):
  """What a step hands to the next one."""

  state: State  # of every lane: [lanes, ...], but for frozen parameters that they share
  live: (
    Any  # [lanes] bool: false for those that met a number that is not finite, whose state stays what it was
  )


class Stack(NamedTuple):
  """The program of a group of trials on its devices, not yet compiled."""

  mesh: Any
  init: Callable  # floats, keys, batch -> State
  step: Callable  # floats, carry, batch, going [lanes] bool -> carry, {name: [lanes]}; donates the carry
  evaluate: Callable  # floats, state, batch -> {name: (sums, weights)}, extra
  floats: Any  # {dotted key: [lanes] float32}
  keys: Any  # [lanes] PRNG keys
  data: 'Data'
  resident: Any  # as `placement.Prepared` has it
  example: Any  # the first batch, with the resident arrays
  target: Any  # State of ShapeDtypeStruct with shardings
  config: dict  # of the program: that of the first trial, its attention settled
  count: int  # lanes, those that fill up included
  part: Any = batches.WHOLE

  def put_lanes(self, array):
    """[lanes, ...] on the host -> on the devices."""
    return jax.device_put(array, NamedSharding(self.mesh, P(LANES)))

  def put_batch(self, batch):
    return jax.device_put(batch, NamedSharding(self.mesh, spec(self.data.rows)))


class Data(NamedTuple):
  """The data sets of the lanes as one: the lanes share batches unless their data.seed differs."""

  datasets: list  # of each lane
  rows: int | None  # the axis of lanes of a batch's arrays: 0, or None where they are shared
  resident: int | None  # that of what lies on the devices

  def train_batch(self, at, part=batches.WHOLE):
    return self.joined([each.train_batch(at, part) for each in self.distinct()])

  def validation_batches(self, part=batches.WHOLE):
    yield from map(
      self.joined, zip(*(each.validation_batches(part) for each in self.distinct()), strict=True)
    )

  def distinct(self):
    return list({id(each): each for each in self.datasets}.values())

  def joined(self, found):
    """A batch of each distinct data set -> the batch of the lanes."""
    if self.rows is None:
      return found[0]
    by_dataset = {id(each): batch for each, batch in zip(self.distinct(), found, strict=True)}
    return jax.tree.map(lambda *rows: np.stack(rows), *(by_dataset[id(each)] for each in self.datasets))

  def resident_arrays(self):
    held = [each.resident for each in self.datasets]
    if self.resident is None:
      return held[0]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *held)

  def shapes(self):
    """A training batch of each shape; batches of several shapes are shared by the lanes."""
    given = self.datasets[0].shapes
    return given() if given else [self.train_batch(0)]


def data_of(datasets):
  """The Data of each lane's Dataset; lanes of the same data.seed have the same object."""
  first = datasets[0]
  if all(each is first for each in datasets):
    return Data(datasets, None, None)
  same = lambda a, b: a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
  shared = all(each is first or same(each.resident or {}, first.resident or {}) for each in datasets)
  return Data(datasets, 0, None if shared else 0)


def spec(axis):
  return P() if axis is None else P(LANES)


def place(configs, datasets, devices):
  """The Stack of trials.

  Args:
    configs: complete, of each trial; they differ in floats and seeds alone.
    datasets: of each trial, see `data_of`.
    devices: as many as there are lanes are used.
  """
  devices = devices[: len(configs)]
  count = -(-len(configs) // len(devices)) * len(devices)
  filled = lambda items: [*items, *items[-1:] * (count - len(items))]
  configs, data = filled(configs), data_of(filled(datasets))
  mesh = jax.make_mesh((len(devices),), (LANES,), axis_types=(AxisType.Auto,), devices=devices)
  config = settled(configs[0], datasets[0].example(), devices)
  frozen = None if config['init_from'] else 0  # what a seed draws is each lane's own
  init, take, evaluate = programs(config, mesh, data, frozen)
  put = lambda array: jax.device_put(array, NamedSharding(mesh, P(LANES)))
  floats = {name: put(np.float32([floats_of(c)[name] for c in configs])) for name in floats_of(config)}
  bits = np.stack([np.asarray(jax.random.key_data(jax.random.key(c['seed']))) for c in configs])
  keys, resident = jax.random.wrap_key_data(put(bits)), {}
  if held := data.resident_arrays():
    resident = {RESIDENT: jax.device_put(held, NamedSharding(mesh, spec(data.resident)))}
  example = data.train_batch(0) | resident
  target = target_of(config, mesh, frozen, jax.eval_shape(init, floats, keys, example), floats, example, data)
  return Stack(mesh, init, take, evaluate, floats, keys, data, resident, example, target, config, count)


def settled(config, example, devices):
  """The config with its attention as lanes can have it: cuDNN takes no lengths of rows under vmap."""
  found, choice = attention.settled(config, example, devices[:1])
  if choice is not None and choice.implementation == 'cudnn' and config['model']['name'] != 'transformer':
    return attention.attending(config, 'xla')
  return found


def state_tree(frozen, of):
  """A State of what lanes have (`of(0)`), and of `of(frozen)` for frozen parameters."""
  return State(*(of(frozen if name == 'frozen' else 0) for name in State._fields))


def programs(config, mesh, data, frozen):
  """(init, step, evaluate) of a Stack, jitted."""
  single, states, lane = step.make_program(config, tasks.build), state_tree(frozen, spec), P(LANES)
  axes = lambda batch: {name: data.resident if name == RESIDENT else data.rows for name in batch}
  placed = lambda batch: {name: spec(axis) for name, axis in axes(batch).items()}
  over = partial(jax.shard_map, mesh=mesh, check_vma=False)

  def init(floats, keys, batch):
    def run(*arguments):
      state = step.lanes(single, axes(batch), frozen).init(*arguments)
      return state if frozen == 0 else state._replace(frozen=None)  # it comes from a checkpoint

    return over(run, in_specs=(lane, lane, placed(batch)), out_specs=lane)(floats, keys, batch)

  def take(floats, carry, batch, going):
    def run(floats, carry, batch, going):
      state, metrics = step.lanes(single, axes(batch), frozen).step(floats, carry.state, batch)
      fine = jnp.stack([jnp.isfinite(metrics[name]) for name in FINITE]).all(0)
      return Carry(kept(carry.live & going & fine, state, carry.state), carry.live & going & fine), metrics

    specs = Carry(states, lane)
    return over(run, in_specs=(lane, specs, placed(batch), lane), out_specs=(specs, lane))(
      floats, carry, batch, going
    )

  def evaluate(floats, state, batch):
    run = step.lanes(single, axes(batch), frozen).evaluate
    return over(run, in_specs=(lane, states, placed(batch)), out_specs=lane)(floats, state, batch)

  return jax.jit(init), jax.jit(take, donate_argnums=1), jax.jit(evaluate)


def kept(live, after, before):
  """The State after a step of the lanes that are live, [lanes] bool, and the one before it of the others."""

  def choose(new, old):
    return jnp.where(live.reshape(-1, *[1] * (new.ndim - 1)), new, old)

  chosen = jax.tree.map(choose, after._replace(frozen=None), before._replace(frozen=None))
  return chosen._replace(frozen=before.frozen)


def target_of(config, mesh, frozen, state, floats, example, data):
  """`state`, the shapes that `init` makes, with shardings, and with the frozen parameters that lanes share."""
  lay = lambda axis: lambda leaf: leaf.update(sharding=NamedSharding(mesh, spec(axis)))
  target = jax.tree.map(lay(0), state)
  if frozen is None:
    unstacked = lambda axis: (
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:] if axis == 0 else leaf.shape, leaf.dtype)
    )
    batch = {
      name: jax.tree.map(unstacked(data.resident if name == RESIDENT else data.rows), leaf)
      for name, leaf in example.items()
    }
    single = jax.eval_shape(
      step.make_program(config, tasks.build).init,
      jax.tree.map(unstacked(0), floats),
      jax.eval_shape(jax.random.key, 0),
      batch,
    )
    target = target._replace(frozen=jax.tree.map(lay(None), single.frozen))
  return target


def first_state(stack):
  """The State before any step, with the parameters that `config.init_from` names."""
  state, config = stack.init(stack.floats, stack.keys, stack.example), stack.config
  if not config['init_from']:
    return state
  params, frozen = experiment.initial_params(config)
  wide = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (stack.count, *leaf.shape)), params)
  places = jax.tree.map(lambda leaf: leaf.sharding, (stack.target.params, stack.target.frozen))
  params, frozen = jax.device_put((wide, frozen), places)
  average = None if state.average is None else jax.tree.map(jnp.copy, params)
  return state._replace(params=params, frozen=frozen, average=average)


def compile_steps(stack):
  """{shape of a batch: compiled step}."""
  lane = NamedSharding(stack.mesh, P(LANES))
  flags = jax.ShapeDtypeStruct((stack.count,), bool, sharding=lane)
  compiled = {}
  for example in stack.data.shapes():
    rows = {name: array for name, array in example.items() if name != RESIDENT}
    dtype = lambda array: jax.dtypes.canonicalize_dtype(array.dtype)
    where = NamedSharding(stack.mesh, spec(stack.data.rows))
    batch = {name: jax.ShapeDtypeStruct(a.shape, dtype(a), sharding=where) for name, a in rows.items()}
    lowered = stack.step.lower(stack.floats, Carry(stack.target, flags), batch | stack.resident, flags)
    compiled[placement.shape_of(batch)] = lowered.compile()
  return compiled


def batch_at(stack, at):
  """The batch of a step on the devices."""
  return stack.put_batch(stack.data.train_batch(at)) | stack.resident
