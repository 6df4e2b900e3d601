"""Eight pretended CPU devices for every test; a subprocess that a test starts has one, as a user's would."""

import gc
import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import pytest

jax.config.update('jax_num_cpu_devices', 8)
# Hundreds of small programs are compiled here to run for an instant: making code faster takes longer than it saves.
# Set in this process alone: a subprocess, such as those that are killed and resumed, runs the program that users run.
jax.config.update('jax_disable_most_optimizations', True)


@pytest.fixture(autouse=True, scope='module')
def forget_programs():
  """A process may map so many pieces of memory, and each compiled program takes some: too many end in a crash."""
  yield
  jax.clear_caches()
  gc.collect()
