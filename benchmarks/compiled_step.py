"""The train step that `aigc train` would run, compiled from shapes alone: for pretended CPU devices, or for H100s.

Nothing is computed and no array is made, so models and device counts may be larger than the machine. XLA's compiler
for GPUs needs no GPU, but JAX's plugin: `uv run --with jax-cuda12-plugin==VERSION_OF_JAX python ...`.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from aigc_jax import api, tasks
from aigc_jax.config import floats_of
from aigc_jax.training import mesh, parallel, prepare

GPT2 = pathlib.Path(__file__).parents[1] / 'configs' / 'transformer_lm.py'
# What XLA asks a device for, as NVIDIA gives it for the H100 SXM of 80 GB.
H100 = {
  'threads_per_block_limit': 1024,
  'threads_per_warp': 32,
  'shared_memory_per_block': 48 * 1024,
  'shared_memory_per_block_optin': 227 * 1024,
  'shared_memory_per_core': 228 * 1024,
  'threads_per_core_limit': 2048,
  'core_count': 132,
  'fpus_per_core': 128,
  'block_dim_limit_x': 2**31 - 1,
  'block_dim_limit_y': 2**16 - 1,
  'block_dim_limit_z': 2**16 - 1,
  'memory_bandwidth': 3_352_320_000_000,
  'l2_cache_size': 50 * 2**20,
  'clock_rate_ghz': 1.98,
  'device_memory_size': 80 * 2**30,
  'registers_per_core_limit': 65536,
  'registers_per_block_limit': 65536,
}
# Without a GPU nothing can be timed, so nothing is chosen by time.
H100_FLAGS = '--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false'


def set_up(devices, target):
  """Before JAX is used: as many pretended devices as the step will have."""
  jax.config.update('jax_num_cpu_devices', devices)
  if target == 'h100':
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {H100_FLAGS}'


def h100s(count):
  """As many devices to compile for, and not to run on."""
  info = ' '.join(f'{name}: {value}' for name, value in H100.items())
  config = (
    f'gpu_device_info {{ {info} cuda_compute_capability {{ major: 9 }} }} platform_name: "CUDA" '
    'dnn_version_info { major: 9 minor: 10 } runtime_version { major: 12 minor: 9 } '
    'device_description_str: "NVIDIA H100 80GB HBM3"'
  )
  jax.devices()  # finds the plugins
  try:
    found = topologies.get_topology_desc(platform='cuda', target_config=config, topology=f'1x1x{count}')
  except (RuntimeError, NotImplementedError) as error:
    needed = f'uv run --with jax-cuda12-plugin=={jax.__version__} python ...'
    raise SystemExit(f'compiling for H100s needs the plugin of JAX for them: {needed} ({error})') from None
  return list(found.devices)


def resolved(model, rows, layout, precision):
  """The complete config of GPT-2's recipe for a model (fields of config.model) on a layout {axis: size}."""
  config = api.read_config(f'{GPT2}:gpt2')
  axes = {'data': 1, 'fsdp': 1, 'tensor': 1} | layout
  return prepare.fill_in(
    config
    | {
      'model': config['model'] | model,
      'data': config['data'] | {'sequence_length': model['context_length'], 'batch_size': rows},
      'training': config['training'] | {'precision': precision},
      'parallel': config['parallel'] | axes,
    }
  )


def lower(config, devices):
  """(the lowered step, the State of shapes with shardings) of a language model's config on devices."""
  program = parallel.make_parallel(config, tasks.build, devices)
  shaped = lambda shape, dtype, sharding: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
  shape = config['data']['batch_size'], config['data']['sequence_length']
  batch = {name: shaped(shape, jnp.int32, program.rows) for name in ('inputs', 'targets')}
  batch['mask'] = shaped(shape, jnp.float32, program.rows)
  floats = {name: shaped((), jnp.float32, program.replicated) for name in floats_of(config)}
  state = jax.eval_shape(program.init, floats, jax.eval_shape(jax.random.key, 0), batch)
  state = jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), state, program.shardings(state))
  return program.step.lower(floats, state, batch), state


def compile_step(config, target):
  """(the compiled step, its State of shapes) for pretended CPU devices or H100s."""
  devices = mesh.choose_devices(config)
  lowered, state = lower(config, devices if target == 'cpu' else h100s(len(devices)))
  return lowered.compile(), state
