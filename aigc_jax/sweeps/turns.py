"""Lanes in turns: the program of one trial, compiled once, takes a step of each lane after the other.

For what is slower side by side on a CPU. A State of the lanes has a tuple in every field, of each lane's own.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.sweeps.vmapped import Carry, Way, fine, kept
from aigc_jax.task import State
from aigc_jax.training import memory_use


def make(single, mesh, data, frozen, floats, keys):
  """The Way of a group on one device, see `vmapped.make`."""
  del mesh
  count = len(keys)
  floats, keys = (
    jax.device_put([jax.tree.map(lambda x: x[i], tree) for i in range(count)]) for tree in (floats, keys)
  )
  axes, evaluate_one = data.axes, jax.jit(single.evaluate)

  def row(batch, lane):
    own = axes(batch)
    return {n: jax.tree.map(lambda x: x[lane], a) if own[n] == 0 else a for n, a in batch.items()}

  def init(batch):
    one = jax.jit(single.init)
    states = [one(floats[lane], keys[lane], row(batch, lane)) for lane in range(count)]
    return joined([s if frozen == 0 else s._replace(frozen=None) for s in states])

  def compile(target, batch):
    state = apart_shapes(target, frozen)
    live = jax.ShapeDtypeStruct((), bool)
    shapes = {n: jax.tree.map(partial(one_of, axes(batch)[n]), a) for n, a in batch.items()}
    take = jax.jit(partial(take_one, single), donate_argnums=2)
    compiled = take.lower(floats[0], state.frozen, state._replace(frozen=None), live, shapes).compile()
    waiting = (count - 1) * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.params)) * 3
    peak = memory_use.of_program(compiled).peak + waiting  # with the optimizer's two of a parameter
    return partial(take_all, compiled, floats, row), peak

  def evaluate(floats_of_all, state, batch):
    del floats_of_all
    found = [evaluate_one(floats[lane], lane_of(state, lane), row(batch, lane)) for lane in range(count)]
    sums = jax.tree.map(lambda *leaves: np.stack(leaves), *(jax.device_get(one) for one, _ in found))
    return sums, tuple(extra for _, extra in found)

  return Way(
    init=init,
    compile=compile,
    evaluate=evaluate,
    first=lambda state: Carry(state, tuple(jnp.bool_(True) for _ in range(count))),
    flags=lambda flags: flags,
    lane=lane_of,
    together=partial(together, frozen),
    apart=partial(apart, count, frozen),
    packs=False,
  )


def take_one(single, floats, frozen, state, live, batch):
  """(State without `frozen`, live, metrics) after a step of one lane."""
  before = state._replace(frozen=frozen)
  after, metrics = single.step(floats, before, batch)
  live = live & fine(metrics)
  return kept(live, after, before)._replace(frozen=None), live, metrics


def take_all(compiled, floats, row, carry, batch, going):
  """A step of the lanes that go on; of the others the metrics are NaN."""
  states, lives, metrics = list(split(carry.state)), list(carry.live), {}
  for lane in np.flatnonzero(going):
    state = states[lane]
    moved, lives[lane], found = compiled(
      floats[lane], state.frozen, state._replace(frozen=None), lives[lane], row(batch, lane)
    )
    states[lane] = moved._replace(frozen=state.frozen)
    for name, value in found.items():
      metrics.setdefault(name, [np.float32(np.nan)] * len(states))[lane] = value
  return Carry(joined(states), tuple(lives)), metrics


def joined(states):
  return State(*zip(*states, strict=True))


def split(state):
  return [State(*fields) for fields in zip(*state, strict=True)]


def lane_of(state, lane):
  return State(*(field[lane] for field in state))


def together(frozen, state):
  states = split(state)
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one._replace(frozen=None) for one in states))
  held = states[0].frozen
  if frozen == 0:
    held = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(one.frozen for one in states))
  return stacked._replace(frozen=held)


def apart(count, frozen, state):
  one = lambda lane: lambda leaf: leaf[lane]
  states = [jax.tree.map(one(lane), state._replace(frozen=None)) for lane in range(count)]
  held = [state.frozen if frozen is None else jax.tree.map(one(lane), state.frozen) for lane in range(count)]
  return joined([each._replace(frozen=frozen_here) for each, frozen_here in zip(states, held, strict=True)])


def apart_shapes(target, frozen):
  """Shapes of one lane's State, given those of all."""
  one = partial(one_of, 0)
  held = jax.tree.map(partial(one_of, frozen), target.frozen)
  return jax.tree.map(one, target._replace(frozen=None))._replace(frozen=held)


def one_of(axis, leaf):
  return jax.ShapeDtypeStruct(leaf.shape[1:] if axis == 0 else leaf.shape, leaf.dtype)
