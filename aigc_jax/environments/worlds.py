"""Worlds of few states, given by tables; the states of each are the cells of a grid, row by row.

Actions are 0 left, 1 down, 2 right, 3 up, and a step against the border stays where it is.
"""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.environments.environment import Environment, Tables

MOVES = ((0, -1), (1, 0), (0, 1), (-1, 0))  # (rows, columns) of each action
COLOURS = {
  'S': (235, 235, 235),
  '.': (235, 235, 235),
  'C': (90, 60, 50),
  'H': (70, 110, 190),
  'G': (90, 170, 90),
}
CELL = 20  # pixels


def cliff_walking() -> Environment:
  """Example 6.6 of Sutton and Barto (2018): each step costs 1, a step off the cliff 100 and leads back to the start."""
  rows = ('............', '............', '............', 'SCCCCCCCCCCG')
  start = rows[3].index('S') + 3 * len(rows[0])

  def outcome(cell, row, column):
    if cell == 'C':
      return start, -100.0, False
    return row * len(rows[0]) + column, -1.0, cell == 'G'

  return from_grid('cliff_walking', rows, outcome, slips=((0, 1.0),), time_limit=200)


def frozen_lake() -> Environment:
  """Gymnasium's 4 x 4 FrozenLake-v1: one step in three goes as meant, the others to its left or right. G is worth 1."""
  rows = ('S...', '.H.H', '...H', 'H..G')

  def outcome(cell, row, column):
    return row * len(rows[0]) + column, float(cell == 'G'), cell in 'HG'

  return from_grid('frozen_lake', rows, outcome, slips=((-1, 1 / 3), (0, 1 / 3), (1, 1 / 3)), time_limit=100)


def from_grid(name, rows, outcome, slips, time_limit):
  """The Environment of a drawn grid.

  Args:
    rows: a string each; 'S' is where episodes begin.
    outcome: (cell entered, its row, its column) -> (next state, reward, terminal).
    slips: pairs of (turns by a quarter from the action that was meant, probability).
  """
  height, width = len(rows), len(rows[0])
  shape = (height * width, len(MOVES), len(slips))
  kinds = np.int32, np.float32, np.float32, bool
  tables = Tables(*(np.zeros(shape, kind) for kind in kinds), ''.join(rows).index('S'))
  for state in range(height * width):
    row, column = divmod(state, width)
    for action in range(len(MOVES)):
      for i, (turns, probability) in enumerate(slips):
        down, right = MOVES[(action + turns) % len(MOVES)]
        to = min(max(row + down, 0), height - 1), min(max(column + right, 0), width - 1)
        found = outcome(rows[to[0]][to[1]], *to)
        for table, value in zip(tables[:4], (found[0], probability, *found[1:]), strict=True):
          table[state, action, i] = value
  return of_tables(name, tables, time_limit, lambda state: draw(rows, int(state)))


def of_tables(name, tables, time_limit, draw=None):
  """The Environment that its tables are."""

  def step(state, action, key):
    chances = jnp.asarray(tables.probabilities)[state, action]
    drawn = jax.random.categorical(key, jnp.log(chances))
    pick = lambda table: jnp.asarray(table)[state, action, drawn]
    return pick(tables.next_states), pick(tables.rewards), pick(tables.terminals)

  actions = tables.next_states.shape[1]
  begin, observe = lambda key: jnp.int32(tables.start), lambda state: state
  return Environment(name, begin, observe, step, actions, time_limit, draw, tables)


def draw(rows, state):
  """The grid with the learner in it, uint8 [20 height, 20 width, 3]."""
  cells = np.array([[COLOURS[cell] for cell in row] for row in rows], np.uint8)
  picture = cells.repeat(CELL, 0).repeat(CELL, 1)
  picture[::CELL] = picture[:, ::CELL] = 255
  top, left = (CELL * place for place in divmod(state, len(rows[0])))
  y, x = np.mgrid[:CELL, :CELL] - CELL / 2
  picture[top : top + CELL, left : left + CELL][np.hypot(x, y) < 0.35 * CELL] = (200, 50, 50)
  return picture


def optimal_values(tables: Tables, discount, sweeps=2000):
  """The table of the best policy by value iteration, float32 [states, actions] (Sutton and Barto 2018, section 4.4).

  discount: a float, or an array of one, which may be traced.
  """
  following, chances, rewards, ends = map(jnp.asarray, tables[:4])

  def sweep(_, values):
    after = values.max(1)[following] * (1 - ends)  # [states, actions, outcomes]
    return (chances * (rewards + discount * after)).sum(2)

  return jax.lax.fori_loop(0, sweeps, sweep, jnp.zeros(following.shape[:2]))


def reachable(tables: Tables):
  """Which states an episode can be in, float32 [states]: 1 where it can, the ends left out."""
  found, new = {tables.start}, [tables.start]
  while new:
    state = new.pop()
    going_on = (tables.probabilities[state] > 0) & ~tables.terminals[state]
    later = set(tables.next_states[state][going_on].tolist()) - found
    found |= later
    new += later
  return np.isin(np.arange(len(tables.next_states)), [*found]).astype(np.float32)
