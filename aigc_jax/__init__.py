"""Generative models in JAX and Flax: one contract, one training loop, configs that sweep themselves."""

PUBLIC = {
  'train': 'api',
  'resume': 'api',
  'load_run': 'api',
  'from_pretrained': 'api',
  'export': 'api',
  'card': 'api',
  'dry_run': 'api',
  'sweep': 'sweeping',
  'load_sweep': 'sweeps.frame',
  'reproduce': 'studies.reproduce',
  'list_runs': 'overview',
  'diff': 'overview',
}

__all__ = list(PUBLIC)


def __getattr__(name):
  """Imports JAX only when something is asked for, so that `import aigc_jax` is quick."""
  if name in PUBLIC:
    import importlib

    return getattr(importlib.import_module(f'aigc_jax.{PUBLIC[name]}'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
