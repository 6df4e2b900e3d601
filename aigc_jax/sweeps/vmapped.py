"""Lanes side by side: one program that is the step, vmapped, over a lane axis that is dealt out over the devices.

Each device runs lanes of its own and exchanges nothing, so any number of devices gives the numbers of one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from aigc_jax.sweeps.lane_data import Data
from aigc_jax.task import State
from aigc_jax.training import memory_use, step
from aigc_jax.training.loop import FINITE

LANES = 'lanes'


class Carry(NamedTuple):
  """What a step hands to the next one."""

  state: State  # of every lane, as the way in which they run has it
  live: (
    Any  # [lanes] bool: false for those that met a number that is not finite, whose state stays what it was
  )


class Way(NamedTuple):
  """How the lanes of a group run. A State of theirs is stacked here, [lanes, ...], but for what they share."""

  init: Callable  # batch -> State
  compile: Callable  # target, shapes of a batch -> (carry, batch, going -> carry, {name: [lanes]}), bytes on a device
  evaluate: Callable  # floats, state, batch -> {name: (sums, weights)}, extra
  first: Callable  # State -> Carry
  flags: Callable  # [lanes] bool on the host -> `going`: which lanes are to go on
  lane: Callable  # State, lane -> the State of that lane
  together: Callable  # State -> stacked State
  apart: Callable  # stacked State -> State
  packs: bool  # whether lanes that have ended cost as much as the others


def spec(axis):
  return P() if axis is None else P(LANES)


def make(single, mesh, data: Data, frozen, floats, keys):
  """The Way of a group.

  Args:
    single: the Program of one trial. data: of the lanes. frozen: the lane axis of frozen parameters, 0 or None.
    floats, keys: [lanes].
  """
  init, take, evaluate = programs(single, mesh, data, frozen)
  put = lambda array: jax.device_put(array, NamedSharding(mesh, P(LANES)))
  count = len(keys)

  def compile(target, batch):
    flags = jax.ShapeDtypeStruct((count,), bool, sharding=NamedSharding(mesh, P(LANES)))
    compiled = take.lower(floats, Carry(target, flags), batch, flags).compile()
    return partial(compiled, floats), memory_use.of_program(compiled).peak

  return Way(
    init=partial(init, floats, keys),
    compile=compile,
    evaluate=evaluate,
    first=lambda state: Carry(state, put(np.ones(count, bool))),
    flags=put,
    lane=partial(lane_of, frozen),
    together=lambda state: state,
    apart=lambda state: state,
    packs=True,
  )


def lane_of(frozen, state, lane):
  pick = lambda tree: jax.tree.map(lambda leaf: leaf[lane], tree)
  return pick(state._replace(frozen=None))._replace(
    frozen=state.frozen if frozen is None else pick(state.frozen)
  )


def programs(single, mesh, data, frozen):
  """(init, step, evaluate) over lanes, jitted."""
  lane, states = P(LANES), State(*(spec(frozen if name == 'frozen' else 0) for name in State._fields))
  placed = lambda batch: {name: spec(axis) for name, axis in data.axes(batch).items()}
  over = partial(jax.shard_map, mesh=mesh, check_vma=False)

  def init(floats, keys, batch):
    def run(*arguments):
      state = step.lanes(single, data.axes(batch), frozen).init(*arguments)
      return state if frozen == 0 else state._replace(frozen=None)  # it comes from a checkpoint

    return over(run, in_specs=(lane, lane, placed(batch)), out_specs=lane)(floats, keys, batch)

  def take(floats, carry, batch, going):
    def run(floats, carry, batch, going):
      state, metrics = step.lanes(single, data.axes(batch), frozen).step(floats, carry.state, batch)
      live = carry.live & going & fine(metrics)
      return Carry(kept(live, state, carry.state), live), metrics

    specs = Carry(states, lane)
    return over(run, in_specs=(lane, specs, placed(batch), lane), out_specs=(specs, lane))(
      floats, carry, batch, going
    )

  def evaluate(floats, state, batch):
    run = step.lanes(single, data.axes(batch), frozen).evaluate
    return over(run, in_specs=(lane, states, placed(batch)), out_specs=lane)(floats, state, batch)

  return jax.jit(init), jax.jit(take, donate_argnums=1), jax.jit(evaluate)


def fine(metrics):
  """Whether the numbers of a step that must be finite are."""
  return jnp.stack([jnp.isfinite(metrics[name]) for name in FINITE]).all(0)


def kept(live, after, before):
  """The State after a step where `live`, () or [lanes] bool, and the one before it elsewhere."""

  def choose(new, old):
    return jnp.where(live.reshape(live.shape + (1,) * (new.ndim - live.ndim)), new, old)

  chosen = jax.tree.map(choose, after._replace(frozen=None), before._replace(frozen=None))
  return chosen._replace(frozen=before.frozen)
