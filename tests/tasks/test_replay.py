"""The memory of transitions: against plain Python lists, and draws against their probabilities."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.environments.environment import Transition
from aigc_jax.tasks import replay

WORLDS, CAPACITY = 3, 8


def story(length, seed=0):
  """Transitions [length][world] of made-up episodes; observations are numbers that never come twice."""
  generator = np.random.default_rng(seed)
  ends = generator.random((length, WORLDS)) < 0.2
  cuts = ~ends & (generator.random((length, WORLDS)) < 0.1)
  number = np.arange(length * WORLDS).reshape(length, WORLDS)
  reward = generator.normal(size=(length, WORLDS))
  return Transition(
    number[..., None].astype(np.float32),
    number.astype(np.int32) % 4,
    reward.astype(np.float32),
    ends.astype(np.float32),
    (ends | cuts).astype(np.float32),
    (number[..., None] + 0.5).astype(np.float32),
  )


def filled(length, new=2, prioritized=False):
  """(Replay that took in a story of `length`, `new` transitions of each world at a time; the story)."""
  told = story(length)
  held = replay.empty(jax.tree.map(lambda leaf: leaf[0], told), CAPACITY, prioritized)
  for first in range(0, length, new):
    part = jax.tree.map(lambda leaf: jnp.moveaxis(jnp.asarray(leaf[first : first + new]), 0, 1), told)
    held = replay.insert(held, part, first, jnp.float32(1) if prioritized else None)
  return held, told


@pytest.mark.parametrize(('length', 'new'), [(4, 2), (8, 4), (22, 2), (9, 1)])
def test_the_last_transitions_of_each_world_are_held(length, new):
  held, told = filled(length, new)
  for world in range(WORLDS):
    found = set(np.asarray(held.seen.observation[world, :, 0]).tolist()) - {0.0}
    kept = collections.deque(told.observation[:, world, 0].tolist(), maxlen=CAPACITY)
    assert found == set(kept) - {0.0}


@pytest.mark.parametrize('n_step', [1, 2, 4])
@pytest.mark.parametrize('length', [6, 22])
def test_rows_are_what_plain_python_sums(n_step, length):
  held, told = filled(length)
  discount, seen = 0.9, set()
  drawn = replay.draw(held, jax.random.key(n_step), jnp.int32(length), 200, n_step)
  rows = jax.device_get(replay.returns(held, drawn.places, n_step, discount))
  for world in range(WORLDS):
    for i in range(200):
      begin = int(rows['observation'][world, i, 0] - world) // WORLDS
      seen.add((world, begin))
      total, factor, t = 0.0, 1.0, begin
      while True:
        total += factor * told.reward[t, world]
        factor *= discount
        if told.last[t, world] or t == begin + n_step - 1:
          break
        t += 1
      assert rows['reward'][world, i] == pytest.approx(total, rel=1e-5, abs=1e-6)
      assert rows['bootstrap'][world, i] == pytest.approx(factor * (1 - told.terminal[t, world]), rel=1e-5)
      assert rows['next_observation'][world, i, 0] == told.next_observation[t, world, 0]
      assert rows['action'][world, i] == told.action[begin, world]
  oldest = max(length - CAPACITY, 0)
  assert seen == {(world, t) for world in range(WORLDS) for t in range(oldest, length - n_step + 1)}


def test_draws_are_uniform_and_weigh_alike():
  held, _ = filled(22)
  drawn = replay.draw(held, jax.random.key(0), jnp.int32(22), 20_000, 3)
  counts = np.stack([np.bincount(row, minlength=CAPACITY) for row in np.asarray(drawn.places)])
  possible = counts[counts > 0]
  assert len(possible) == WORLDS * 6  # the newest two begin no row of three
  assert np.abs(possible / 20_000 - 1 / 6).max() < 0.015  # five deviations
  assert (drawn.weights == 1).all()


def test_draws_follow_priorities_and_weights_undo_them():
  """P = p / sum of p within a world, weights (n P)^-beta: eq. 1 and section 3.4 of Schaul et al. 2016."""
  held, _ = filled(22, prioritized=True)
  assert (held.priority == 1).all()
  priorities = np.random.default_rng(1).random((WORLDS, CAPACITY)).astype(np.float32)
  places = jnp.broadcast_to(jnp.arange(CAPACITY), (WORLDS, CAPACITY))
  held = replay.reweighed(held, places, priorities)
  drawn = replay.draw(held, jax.random.key(0), jnp.int32(22), 40_000, 2, 0.7)
  newest = (22 - 1) % CAPACITY
  for world in range(WORLDS):
    wanted = priorities[world] * (np.arange(CAPACITY) != newest)
    wanted = wanted / wanted.sum()
    counts = np.bincount(np.asarray(drawn.places[world]), minlength=CAPACITY) / 40_000
    assert np.abs(counts - wanted).max() < 0.0125  # five deviations
    expected = (7 * wanted[np.asarray(drawn.places[world])]) ** -0.7
    np.testing.assert_allclose(drawn.weights[world], expected, rtol=1e-4)
