"""Experience replay on the device: what each world saw last, in a ring of its own, and batches drawn from it.

Every world has the same number of transitions, and a batch has as many of each: so without priorities all transitions
are equally likely to be drawn, as from one memory of all (Lin 1992); with them, in proportion to their priority within
their world. A device reads and writes nothing but its own worlds' rows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Replay(NamedTuple):
  """The last `capacity` transitions of each world; leaves [worlds, capacity, ...]."""

  seen: Any  # environments.environment.Transition
  priority: Any  # float32, to the power of the exponent; None: all alike


class Drawn(NamedTuple):
  """Where a batch lies and what it weighs; [worlds, rows of each]."""

  places: Any  # int32: of the first transition of each row, in the ring
  weights: Any  # float32: importance weights, not yet divided by the largest


def empty(transition, capacity, prioritized):
  """A Replay for transitions like `transition`, whose leaves are [worlds, ...]."""
  ring = lambda leaf: jnp.zeros((leaf.shape[0], capacity, *leaf.shape[1:]), leaf.dtype)
  worlds = len(jax.tree.leaves(transition)[0])
  return Replay(jax.tree.map(ring, transition), jnp.zeros((worlds, capacity)) if prioritized else None)


def insert(replay, transitions, added, priority=None):
  """Puts transitions [worlds, new, ...] where the oldest are; `added`: how many each world has put in so far.

  The capacity is a multiple of `new`. priority: () of what is new.
  """
  capacity = replay.seen.action.shape[1]
  put = lambda ring, new: lax.dynamic_update_slice_in_dim(ring, new, added % capacity, 1)
  seen = jax.tree.map(put, replay.seen, transitions)
  if replay.priority is None:
    return Replay(seen, None)
  new = jnp.broadcast_to(priority, transitions.action.shape)
  return Replay(seen, put(replay.priority, new))


def draw(replay, key, added, count, n_step, exponent=None):
  """Draws `count` rows of each world, each of `n_step` transitions in a row, uniformly or by priority.

  Args:
    added: transitions that each world has put in so far, `n_step` at least.
    exponent: of the importance weights (beta of Schaul et al. 2016, section 3.4); None: without priorities.

  Returns:
    Drawn, its weights not yet divided by the largest.
  """
  worlds, capacity = replay.seen.action.shape
  filled = jnp.minimum(added, capacity)
  begins = jnp.maximum(filled - n_step + 1, 1)  # of rows that are whole
  uniform = jax.random.uniform(key, (worlds, count))
  oldest = added - filled
  if replay.priority is None:
    ages = jnp.minimum((uniform * begins).astype(jnp.int32), begins - 1)
    return Drawn((oldest + ages) % capacity, jnp.ones((worlds, count)))
  ages = jnp.arange(capacity)
  by_age = jnp.take(replay.priority, (oldest + ages) % capacity, axis=1) * (ages < begins)
  until = jnp.cumsum(by_age, 1)  # [worlds, capacity]
  total = until[:, -1:]
  ages = jax.vmap(lambda sums, at: jnp.searchsorted(sums, at, side='right'))(until, uniform * total)
  ages = jnp.minimum(ages, begins - 1)
  chance = jnp.take_along_axis(by_age, ages, 1) / jnp.maximum(total, 1e-30)  # within its world
  weights = jnp.maximum(begins * chance, 1e-30) ** -exponent
  return Drawn((oldest + ages) % capacity, weights)


def returns(replay, places, n_step, discount):
  """What the rows that begin at `places` [worlds, rows] came to, over at most `n_step` steps (Sutton 1988).

  Returns:
    {'observation', 'action', 'reward': the discounted sum up to the end of the episode or of the row, 'bootstrap': what
    the value of 'next_observation' counts, 0 behind an end}; leaves [worlds, rows, ...].
  """
  capacity = replay.seen.action.shape[1]
  at = lambda i: jax.tree.map(lambda ring: take(ring, (places + i) % capacity), replay.seen)
  first = at(0)
  reward, bootstrap, following = first.reward, discount * (1 - first.terminal), first.next_observation
  goes_on, factor = 1 - first.last, jnp.float32(discount)
  for i in range(1, n_step):
    here = at(i)
    reward = reward + goes_on * factor * here.reward
    factor = factor * discount
    bootstrap = jnp.where(goes_on > 0, factor * (1 - here.terminal), bootstrap)
    following = jnp.where(expanded(goes_on, following) > 0, here.next_observation, following)
    goes_on = goes_on * (1 - here.last)
  return {
    'observation': first.observation,
    'action': first.action,
    'reward': reward,
    'bootstrap': bootstrap,
    'next_observation': following,
  }


def take(ring, places):
  """Of [worlds, capacity, ...] the places [worlds, rows], each of its own world."""
  return jax.vmap(lambda row, chosen: row[chosen])(ring, places)


def expanded(array, like):
  return array.reshape(array.shape + (1,) * (like.ndim - array.ndim))


def reweighed(replay, places, priority):
  """The Replay with new priorities [worlds, rows] at `places`."""
  put = jax.vmap(lambda row, chosen, new: row.at[chosen].set(new))
  return replay._replace(priority=put(replay.priority, places, priority))
