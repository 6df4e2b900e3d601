"""Eight pretended CPU devices for every test; a subprocess that a test starts has what a user's would."""

import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax

jax.config.update('jax_num_cpu_devices', 8)
