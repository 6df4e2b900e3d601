"""Worlds are those of Gymnasium, step for step, and many of them at once begin anew where their episodes end."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import environments
from aigc_jax.environments import worlds
from aigc_jax.environments.environment import Environment, advance, begin
from aigc_jax.errors import UsageError


def test_cartpole_moves_as_gymnasiums():
  """Float32 here, float64 there: compared from the same state at each of 3,000 steps."""
  ours, theirs = environments.make('environment:cartpole'), gymnasium.make('CartPole-v1').unwrapped
  step, generator, ends = jax.jit(ours.step), np.random.default_rng(0), 0
  theirs.reset(seed=0)
  for _ in range(3000):
    action = int(generator.integers(2))
    state, reward, terminal = step(jnp.asarray(theirs.state, jnp.float32), action, None)
    after, expected, ended, _, _ = theirs.step(action)
    np.testing.assert_allclose(state, after, rtol=1e-5, atol=1e-6)
    assert (float(reward), bool(terminal)) == (expected, ended)
    ends += ended
    if ended:
      theirs.reset()
  assert ends > 50
  begun = jax.vmap(ours.reset)(jax.random.split(jax.random.key(0), 1000))
  assert np.abs(begun).max() <= 0.05
  assert ours.time_limit == gymnasium.spec('CartPole-v1').max_episode_steps


@pytest.mark.parametrize(
  ('name', 'theirs'), [('cliff_walking', 'CliffWalking-v1'), ('frozen_lake', 'FrozenLake-v1')]
)
def test_tables_are_gymnasiums(name, theirs):
  tables, wanted = environments.make(f'environment:{name}').tables, gymnasium.make(theirs).unwrapped.P
  lives = worlds.reachable(tables)
  assert tables.start == gymnasium.make(theirs).reset(seed=0)[0]
  for state in np.flatnonzero(lives):
    for action in range(4):
      found, expected = {}, {}
      for to, chance, reward, end in zip(*(table[state, action] for table in tables[:4]), strict=True):
        key = int(to), float(reward), bool(end)
        found[key] = found.get(key, 0) + float(chance)
      # there actions on the cliff are numbered the other way round
      for chance, to, reward, end in wanted[state][3 - action if name == 'cliff_walking' else action]:
        key = int(to), float(reward), bool(end)
        expected[key] = expected.get(key, 0) + chance
      assert found == pytest.approx(expected), (state, action)


def test_states_that_episodes_can_be_in_are_those_of_long_random_play():
  lake = environments.make('environment:frozen_lake')
  players, seen = begin(lake, jax.random.split(jax.random.key(0), 256)), set()
  step = jax.jit(lambda players, actions, key: advance(lake, players, actions, key)[0])
  generator = np.random.default_rng(0)
  for i in range(60):
    seen |= set(np.asarray(players.state).tolist())
    players = step(players, generator.integers(0, 4, 256), jax.random.key(i))
  assert seen == set(np.flatnonzero(worlds.reachable(lake.tables)).tolist())


def counting(limit):
  """A world that counts its steps, ends itself at 5 where action 1 is taken, and is cut after `limit`."""
  step = lambda state, action, key: (state + 1, jnp.float32(state), (state >= 4) & (action == 1))
  return Environment('counting', lambda key: jnp.int32(0), lambda state: state, step, 2, limit)


def test_players_begin_anew_where_their_episodes_end_or_are_cut():
  world, states, told = counting(7), [], []
  players = begin(world, jax.random.split(jax.random.key(0), 2))
  for i in range(9):
    states.append(np.asarray(players.state).tolist())
    players, seen, returned = advance(world, players, jnp.array([1, 0]), jax.random.key(i))
    told.append(
      [
        *zip(
          *(np.asarray(x).tolist() for x in (seen.next_observation, seen.terminal, seen.last, returned)),
          strict=True,
        )
      ]
    )
  assert [row[0] for row in states] == [0, 1, 2, 3, 4, 0, 1, 2, 3]
  assert [row[1] for row in states] == [0, 1, 2, 3, 4, 5, 6, 0, 1]
  assert told[4][0] == (5, 1, 1, 0 + 1 + 2 + 3 + 4)
  assert told[4][1] == (5, 0, 0, 0)
  assert told[6][1] == (7, 0, 1, sum(range(7)))  # cut: what comes next is still worth something
  assert told[3][0] == (4, 0, 0, 0)


def test_value_iteration_is_what_the_best_policy_is_worth():
  """By solving the linear equations of the policy that it finds."""
  tables, discount = environments.make('environment:frozen_lake').tables, 0.95
  values = np.asarray(worlds.optimal_values(tables, discount), np.float64)
  policy, size = values.argmax(1), len(values)
  matrix, gain = np.eye(size), np.zeros(size)
  for state in range(size):
    for to, chance, reward, end in zip(*(t[state, policy[state]] for t in tables[:4]), strict=True):
      gain[state] += chance * reward
      matrix[state, to] -= chance * discount * (not end)
  exact = np.linalg.solve(matrix, gain)
  lives = worlds.reachable(tables) > 0
  np.testing.assert_allclose(values.max(1)[lives], exact[lives], atol=1e-5)
  assert 0.1 < exact[tables.start] < 0.9


@pytest.mark.parametrize('name', environments.BUILT_IN)
def test_worlds_are_drawn(name):
  world = environments.make(f'environment:{name}')
  first = jax.device_get(world.reset(jax.random.key(0)))
  later = first + (np.float32(0.1) if name == 'cartpole' else 1)
  pictures = [world.draw(state) for state in (first, later)]
  assert all(picture.dtype == np.uint8 and picture.ndim == 3 for picture in pictures)
  assert (pictures[0] != pictures[1]).any()


@pytest.mark.parametrize(
  ('source', 'words'),
  [
    ('environment:cartpol', "'environment:cartpol' is no environment; did you mean 'cartpole'"),
    ('environment:', 'there are environment:cartpole'),
    ('gymnax:CartPole-v1', 'gymnax'),
  ],
)
def test_unknown_worlds_are_refused_with_the_known_ones(source, words, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'gymnax', None)
  with pytest.raises(UsageError, match=words) as raised:
    environments.make(source)
  assert '\n' not in str(raised.value)
