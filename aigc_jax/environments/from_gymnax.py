"""Worlds of the library gymnax (Lange 2022) by their names there, such as 'Acrobot-v1'; it is an extra."""

import jax
import jax.numpy as jnp

from aigc_jax.environments.environment import Environment
from aigc_jax.errors import UsageError, listed, nearest


def make(name: str) -> Environment:
  """The Environment of that name. Raises UsageError where gymnax is not there, or has none such."""
  try:
    import gymnax
  except ImportError:
    raise UsageError(
      f'config.data.source: gymnax:{name} needs gymnax, which is not installed; `pip install "aigc-jax[gymnax]"`'
    ) from None
  if name not in gymnax.registered_envs:
    raise UsageError(
      f'config.data.source: gymnax has no {name!r}; {nearest(name, gymnax.registered_envs)}there are '
      f'{listed(gymnax.registered_envs[:8])} and others'
    )
  world, params = gymnax.make(name)
  actions = getattr(world.action_space(params), 'n', None)
  if actions is None:
    raise UsageError(
      f'config.data.source: {name} is moved by numbers, and Q-learning chooses among a few actions'
    )
  fixed = jax.random.key(0)  # of observations, which none of these draws

  def reset(key):
    return world.reset_env(key, params)[1]

  def observe(state):
    found = world.get_obs(state, params=params, key=fixed)
    return jnp.ravel(found).astype(jnp.float32)

  def step(state, action, key):
    _, state, reward, terminal, _ = world.step_env(key, state, action, params)
    return state, jnp.float32(reward), jnp.asarray(terminal, bool)

  return Environment(f'gymnax:{name}', reset, observe, step, int(actions), int(params.max_steps_in_episode))
