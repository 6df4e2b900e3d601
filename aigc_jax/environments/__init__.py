"""Worlds to act in, as pure functions of arrays: `environment:NAME` here, `gymnax:NAME` by the library gymnax."""

from aigc_jax.environments import cartpole, worlds
from aigc_jax.environments.environment import Environment
from aigc_jax.errors import UsageError, listed, nearest

BUILT_IN = {
  'cartpole': cartpole.cartpole,
  'cliff_walking': worlds.cliff_walking,
  'frozen_lake': worlds.frozen_lake,
}

__all__ = ['BUILT_IN', 'Environment', 'make']


def make(source: str) -> Environment:
  """The Environment of a `config.data.source`. Raises UsageError with the nearest known name."""
  kind, _, name = source.partition(':')
  if kind == 'gymnax':
    from aigc_jax.environments import from_gymnax

    return from_gymnax.make(name)
  if kind != 'environment' or name not in BUILT_IN:
    raise UsageError(
      f'config.data.source: {source!r} is no environment; {nearest(name, BUILT_IN)}there are '
      f'{listed(f"environment:{known}" for known in BUILT_IN)}, and gymnax:NAME'
    )
  return BUILT_IN[name]()
