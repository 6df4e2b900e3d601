"""Episodes that a value function plays greedily: what they are worth, and pictures of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.environments.environment import begin
from aigc_jax.errors import UsageError
from aigc_jax.tasks.pictures import grid

SEED = 0  # of the episodes that evaluations play: the same in every run, so that figures can be compared
FRAMES = 12  # of a filmstrip
MOST_FRAMES = 125  # of an animation


class Played(NamedTuple):
  """Whole episodes, [episodes] float32 each."""

  returned: Any  # the sum of rewards, not discounted
  length: Any  # steps
  judged: Any  # the sum over them of what `judge` says


def play(environment, values_of, params, episodes, discount, judge):
  """Plays episodes to their ends, the best action always.

  Args:
    values_of: params, observations [rows, ...] -> [rows, actions].
    episodes: int32 [rows], their numbers; the same number is the same episode.
    judge: transitions as `replay.returns` has them, [rows, ...] -> [rows].

  Returns:
    Played.
  """
  keys = jax.vmap(lambda number: jax.random.fold_in(jax.random.key(SEED), number))(episodes)
  zeros = jnp.zeros_like(episodes, jnp.float32)

  def step(carry):
    time, state, alive, played = carry
    state, rows, alive_after = move(environment, values_of, params, state, alive, keys, time, discount)
    added = Played(rows['reward'], jnp.ones_like(alive), judge(rows))
    played = jax.tree.map(lambda sums, new: sums + alive * new, played, added)
    return time + 1, state, alive_after, played

  goes_on = lambda carry: (carry[0] < environment.time_limit) & (carry[2].max() > 0)
  first = jnp.int32(0), begin(environment, keys).state, zeros + 1, Played(zeros, zeros, zeros)
  return jax.lax.while_loop(goes_on, step, first)[3]


def move(environment, values_of, params, state, alive, keys, time, discount):
  """One greedy step of every row -> (state, the transition as `replay.returns` has it, alive [rows] float32)."""
  observation = jax.vmap(environment.observe)(state)
  action = values_of(params, observation).argmax(-1).astype(jnp.int32)
  step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, time)
  state, reward, terminal = jax.vmap(environment.step)(state, action, step_keys)
  rows = {'observation': observation, 'action': action, 'reward': reward}
  rows |= {'bootstrap': discount * (1.0 - terminal), 'next_observation': jax.vmap(environment.observe)(state)}
  return state, rows, alive * (1.0 - terminal)


def watcher(environment, values_of):
  """params, key, count -> `count` greedy episodes, by a program that is compiled once for each count.

  These are (states, leaves [time + 1, count, ...]; rewards and whether the step is one of the episode, both float32
  [time, count]).
  """

  def watch(params, key, count):
    keys = jax.random.split(key, count)
    state = begin(environment, keys).state

    def step(carry, time):
      state, alive = carry
      after, rows, alive_after = move(environment, values_of, params, state, alive, keys, time, 1.0)
      return (after, alive_after), (after, rows['reward'] * alive, alive)

    times = jnp.arange(environment.time_limit)
    _, (after, rewards, alive) = jax.lax.scan(step, (state, jnp.ones(count)), times)
    states = jax.tree.map(lambda first, later: jnp.concatenate([first[None], later]), state, after)
    return states, rewards, alive

  program = jax.jit(watch, static_argnums=2)
  return lambda params, key, count: jax.device_get(program(params, key, count))


def frames(environment, states, alive, row, most):
  """At most `most` pictures of one episode, evenly apart, the first and the last among them: [n, height, width, 3]."""
  length = int(alive[:, row].sum())
  times = np.unique(np.linspace(0, length, min(most, length + 1)).round().astype(int))
  return np.stack([environment.draw(jax.tree.map(lambda leaf: leaf[t, row], states)) for t in times])


def show(environment, watch, count, params, extra, data, key):
  """'rollout.gif' and 'rollout.png' of greedy episodes; of a world without a picture 'rollout.txt', their returns."""
  del extra, data
  states, rewards, alive = watch(params, key, count)
  lines = [
    f'episode {i + 1}: return {rewards[:, i].sum():g} in {alive[:, i].sum():g} steps' for i in range(count)
  ]
  shown = {'rollout.txt': '\n'.join(lines)}
  if environment.draw is not None:
    moving = [frames(environment, states, alive, i, MOST_FRAMES) for i in range(count)]
    shown |= {
      'rollout.gif': np.concatenate(moving),
      'rollout.png': filmstrips(environment, states, alive, count),
    }
  return shown


def filmstrips(environment, states, alive, count):
  """A row of pictures for each episode, one after another; an episode that ended sooner has fewer."""
  strips = [frames(environment, states, alive, i, FRAMES) for i in range(count)]
  blank = np.full_like(strips[0][:1], 255)
  full = [np.concatenate([strip, *[blank] * (FRAMES - len(strip))]) for strip in strips]
  return grid(np.concatenate(full), FRAMES, padding=2)


def draw(environment, watch, params, extra, data, key, num, label=None, interpolate=False):
  """Filmstrips of `num` greedy episodes, as `Task.draw` has it."""
  del extra, data
  if label is not None or interpolate:
    raise UsageError('--label and --interpolate mean nothing for episodes that are played')
  if environment.draw is None:
    raise UsageError(f'{environment.name} has no picture; `aigc eval` tells what its episodes are worth')
  states, _, alive = watch(params, key, num)
  return filmstrips(environment, states, alive, num)
