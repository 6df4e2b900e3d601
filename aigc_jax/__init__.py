"""Generative models in JAX and Flax: one contract, one training loop, configs that sweep themselves."""

PUBLIC = ('train', 'resume', 'load_run', 'dry_run')

__all__ = list(PUBLIC)


def __getattr__(name):
  """Imports JAX only when something is asked for, so that `import aigc_jax` is quick."""
  if name in PUBLIC:
    from aigc_jax import api

    return getattr(api, name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
