"""Eight pretended CPU devices for every test; a subprocess that a test starts has one, as a user's would."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Hundreds of small programs are compiled here to run for an instant: making code faster takes longer than it saves.
os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'

import jax

jax.config.update('jax_num_cpu_devices', 8)
