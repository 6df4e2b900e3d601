"""What a world is, and many of them at once, each of which begins anew where its episode ends."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Tables(NamedTuple):
  """All of a world of few states, for planning: what each action may lead to, and how likely."""

  next_states: Any  # [states, actions, outcomes] int32
  probabilities: Any  # [states, actions, outcomes] float32, summing to 1
  rewards: Any  # [states, actions, outcomes] float32
  terminals: Any  # [states, actions, outcomes] bool: the episode ends there
  start: int  # the state that episodes begin in


class Environment(NamedTuple):
  """One world, as pure functions of its state; `jax.vmap` makes many."""

  name: str
  reset: Callable  # key -> state
  observe: Callable  # state -> float32 [features]; of a world of few states its number, () int32
  step: Callable  # state, action () int32, key -> state, reward () float32, terminal () bool
  actions: int
  time_limit: int  # steps after which an episode is cut, which is no end that the world has
  draw: Callable | None = None  # state on the host -> uint8 [height, width, 3]; None: it has no picture
  tables: Tables | None = None  # of a world of few states


class Players(NamedTuple):
  """Worlds in the middle of their episodes; every leaf [players, ...]."""

  state: Any
  time: Any  # int32: steps of the episode
  returned: Any  # float32: its rewards so far


class Transition(NamedTuple):
  """One step of each player; every leaf [players, ...]."""

  observation: Any
  action: Any  # int32
  reward: Any  # float32
  terminal: Any  # float32, 1 where the world ended the episode: nothing is worth anything after it
  last: Any  # float32, 1 where the episode ended or was cut: what is stored next belongs to another
  next_observation: Any  # before the next episode begins


def begin(environment: Environment, keys) -> Players:
  """Players at the beginning of an episode, one for each of `keys` [players]."""
  zeros = jnp.zeros(len(keys))
  return Players(jax.vmap(environment.reset)(keys), zeros.astype(jnp.int32), zeros)


def advance(environment: Environment, players: Players, actions, key):
  """Every player takes its action, and begins anew where its episode ends.

  Args:
    actions: [players] int32.

  Returns:
    (Players, Transition, the rewards of each whole episode: its return where it is over with this step, else 0).
  """
  step_keys, reset_keys = jax.random.split(key, (2, len(players.time)))
  observations = jax.vmap(environment.observe)(players.state)
  state, rewards, terminals = jax.vmap(environment.step)(players.state, actions, step_keys)
  after = jax.vmap(environment.observe)(state)
  time, returned = players.time + 1, players.returned + rewards
  last = terminals | (time >= environment.time_limit)
  fresh = begin(environment, reset_keys)
  choose = lambda new, old: jnp.where(jnp.reshape(last, (-1,) + (1,) * (new.ndim - 1)), new, old)
  went_on = Players(state, time, returned)
  as_float = lambda flags: flags.astype(jnp.float32)
  seen = Transition(observations, actions, rewards, as_float(terminals), as_float(last), after)
  return jax.tree.map(choose, fresh, went_on), seen, jnp.where(last, returned, 0.0)
