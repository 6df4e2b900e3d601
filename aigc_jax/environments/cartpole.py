"""CartPole-v1: a pole on a cart that is pushed left or right (Barto, Sutton and Anderson 1983), as Gymnasium has it.

The equations of motion are Florian's (2005, "Correct equations for the dynamics of the cart-pole system", without
friction), integrated by Euler's method at 50 Hz. Constants and limits are those of Gymnasium's CartPole-v1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax.environments.environment import Environment

GRAVITY, CART_MASS, POLE_MASS = 9.8, 1.0, 0.1  # m/s^2, kg, kg
HALF_LENGTH, FORCE, SECONDS = 0.5, 10.0, 0.02  # m, N, s of a step
LARGEST_ANGLE, LARGEST_PLACE = 12 * 2 * np.pi / 360, 2.4  # rad, m


def cartpole() -> Environment:
  """The state is what is observed: float32 [4], place (m), speed, angle (rad, 0 upright) and angular speed."""
  reset = lambda key: jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05)
  return Environment('cartpole', reset, lambda state: state, step, actions=2, time_limit=500, draw=draw)


def step(state, action, key):
  """Action 1 pushes to the right, 0 to the left; each step is worth 1, the one that loses the pole too."""
  del key
  _, speed, angle, turning = state
  force = jnp.where(action == 1, FORCE, -FORCE)
  mass, moment = CART_MASS + POLE_MASS, POLE_MASS * HALF_LENGTH
  cosine, sine = jnp.cos(angle), jnp.sin(angle)
  push = (force + moment * turning**2 * sine) / mass
  turn = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4 / 3 - POLE_MASS * cosine**2 / mass))
  pull = push - moment * turn * cosine / mass
  rates = jnp.stack([speed, pull, turning, turn])
  state = state + SECONDS * rates
  terminal = (jnp.abs(state[0]) > LARGEST_PLACE) | (jnp.abs(state[2]) > LARGEST_ANGLE)
  return state, jnp.float32(1), terminal


def draw(state):
  """The cart on its track and the pole, uint8 [100, 150, 3]; the track ends where an episode does."""
  height, width, scale = 100, 150, 150 / (2 * LARGEST_PLACE + 0.4)  # pixels a metre
  rows, columns = np.mgrid[:height, :width]
  x, y = (columns - width / 2) / scale, (75 - rows) / scale  # metres from the middle of the track
  picture = np.full((height, width, 3), 255, np.uint8)
  place, _, angle, _ = np.asarray(state, np.float64)
  along = np.clip(((x - place) * np.sin(angle) + y * np.cos(angle)), 0, 2 * HALF_LENGTH)
  apart = np.hypot(x - place - along * np.sin(angle), y - along * np.cos(angle))
  picture[np.abs(y) < 0.02] = 0
  picture[(np.abs(np.abs(x) - LARGEST_PLACE) < 0.03) & (np.abs(y) < 0.12)] = 0
  picture[(np.abs(x - place) < 0.25) & (np.abs(y) < 0.12)] = (40, 40, 40)
  picture[apart < 0.05] = (202, 120, 60)
  return picture
