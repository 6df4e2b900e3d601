"""Our attention against another, forward and backward, in turns in one process: on a CPU against
`jax.nn.dot_product_attention` in float32, on a GPU against cuDNN's flash attention in bfloat16.

python benchmarks/attention.py [--rounds=20]
"""

import argparse
import time

import jax
import jax.numpy as jnp

from aigc_jax.models.attention import attend, flash
from aigc_jax.models.masks import Structure

CAUSAL = Structure(causal=True)
SIZES = {  # batch, time, heads, head_width
  'quick start': (4, 256, 4, 32),
  'nanoGPT': (12, 64, 4, 32),
  '6 x 384': (8, 256, 6, 64),
  '12 x 768': (2, 1024, 12, 64),
}
GPU_SIZES = {
  'quick start': (64, 256, 4, 32),
  '6 x 384': (64, 256, 6, 64),
  'GPT-2 124M': (16, 1024, 12, 64),
  'GPT-2 350M': (16, 1024, 16, 64),
  '4,096 tokens': (2, 4096, 16, 128),
  '8,192 tokens': (1, 8192, 16, 128),
}


def ours(query, key, value):
  """Of [batch, time, heads, head_width], as those below."""
  turned = [x.swapaxes(1, 2) for x in (query, key, value)]  # [batch, heads, time, head_width]
  query, (key, value) = turned[0], (x.reshape(-1, *x.shape[2:]) for x in turned[1:])
  return attend(query, key, value, CAUSAL.array(query.shape[2])).swapaxes(1, 2)


def theirs(query, key, value):
  return jax.nn.dot_product_attention(query, key, value, mask=CAUSAL.array(query.shape[1]))


def by_cudnn(query, key, value):
  return flash(*(x.swapaxes(1, 2) for x in (query, key, value)), CAUSAL).swapaxes(1, 2)


def slopes(attention):
  """A jitted function: gradients of a sum of the outputs by query, key and value."""
  total = lambda query, key, value, weights: (attention(query, key, value) * weights).sum()
  return jax.jit(jax.grad(total, argnums=(0, 1, 2)))


def measure(other, shape, dtype, rounds):
  """(seconds of ours, of the other, largest difference of a gradient), each time the fastest of all rounds."""
  inputs = [jax.random.normal(key, shape, dtype) for key in jax.random.split(jax.random.key(0), 4)]
  functions = [slopes(attention) for attention in (ours, other)]
  results = [jax.block_until_ready(function(*inputs)) for function in functions]
  difference = max(float(abs(a - b).max()) for a, b in zip(*results, strict=True))
  best = [float('inf')] * 2
  for _ in range(rounds):
    for i, function in enumerate(functions):
      began = time.perf_counter()
      for _ in range(5):
        jax.block_until_ready(function(*inputs))
      best[i] = min(best[i], (time.perf_counter() - began) / 5)
  return *best, difference


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--rounds', type=int, default=20)
  rounds, on_gpu = parser.parse_args().rounds, jax.default_backend() == 'gpu'
  name, other, dtype, sizes = 'jax.nn', theirs, jnp.float32, SIZES
  if on_gpu:
    name, other, dtype, sizes = 'cuDNN', by_cudnn, jnp.bfloat16, GPU_SIZES
  in_what = ', bfloat16' if on_gpu else ''
  print(f'on {jax.devices()[0].device_kind}: milliseconds, forward and backward{in_what}')
  print(f'{"size":<14}{"ours":>10}{name:>10}{"ratio":>8}{"difference":>14}')
  for size, shape in sizes.items():
    mine, others, difference = measure(other, shape, dtype, rounds)
    print(f'{size:<14}{mine * 1e3:>10.2f}{others * 1e3:>10.2f}{others / mine:>8.2f}{difference:>14.1e}')


if __name__ == '__main__':
  main()
