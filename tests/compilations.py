"""Counts what XLA really compiles, by JAX's own monitoring events."""

from contextlib import contextmanager

import jax

EVENT = '/jax/core/compile/backend_compile_duration'


@contextmanager
def count_compilations():
  """Yields a list that grows by one name, such as 'jit(step)', for every program compiled inside."""
  found = []
  listen = lambda event, _, fun_name='', **__: found.append(fun_name) if event == EVENT else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    yield found
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
