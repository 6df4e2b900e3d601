"""Our attention against `jax.nn.dot_product_attention`, forward and backward, in turns in one process.

python benchmarks/attention.py [--rounds=20]
"""

import argparse
import time

import jax
import jax.numpy as jnp

from aigc_jax.models.attention import attend
from aigc_jax.models.masks import visible

SIZES = {  # batch, time, heads, head_width
  'quick start': (4, 256, 4, 32),
  'nanoGPT': (12, 64, 4, 32),
  '6 x 384': (8, 256, 6, 64),
  '12 x 768': (2, 1024, 12, 64),
}


def ours(query, key, value, mask):
  turned = [x.swapaxes(1, 2) for x in (query, key, value)]  # [batch, heads, time, head_width]
  query, (key, value) = turned[0], (x.reshape(-1, *x.shape[2:]) for x in turned[1:])
  return attend(query, key, value, mask).swapaxes(1, 2)


def theirs(query, key, value, mask):
  return jax.nn.dot_product_attention(query, key, value, mask=mask)


def slopes(attention, mask):
  """A jitted function: gradients of a sum of the outputs by query, key and value."""
  total = lambda query, key, value, weights: (attention(query, key, value, mask) * weights).sum()
  return jax.jit(jax.grad(total, argnums=(0, 1, 2)))


def measure(shape, rounds):
  """(seconds of ours, of theirs, largest difference of a gradient), each time the fastest of all rounds."""
  inputs = [jax.random.normal(key, shape) for key in jax.random.split(jax.random.key(0), 4)]
  positions = jnp.arange(shape[1])[None]
  mask = visible(positions, positions, None)[:, None]  # [1, 1, time, time]
  functions = [slopes(attention, mask) for attention in (ours, theirs)]
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
  rounds = parser.parse_args().rounds
  print(f'on {jax.devices()[0].device_kind}: milliseconds, forward and backward')
  print(f'{"size":<14}{"ours":>10}{"jax.nn":>10}{"ratio":>8}{"difference":>14}')
  for name, shape in SIZES.items():
    mine, other, difference = measure(shape, rounds)
    print(f'{name:<14}{mine * 1e3:>10.2f}{other * 1e3:>10.2f}{other / mine:>8.2f}{difference:>14.1e}')


if __name__ == '__main__':
  main()
