"""Cross-entropy of a large vocabulary, forward and backward: memory and time, whole and by chunks, beside PyTorch.

  python benchmarks/cross_entropy.py [--batch=8] [--time=512] [--width=768] [--vocabulary=50257] [--rounds=3]
    [--chunks=256,64,16] [--types=float32] [--no-torch]

The sum of the loss and its slopes by x [batch, time, width] and the output weights [vocabulary, width], as a language
model with tied embeddings makes them. Each variant has a process of its own: `temporaries` are XLA's account of what
the compiled program holds besides its inputs and results; `peak` is by how much the process's resident memory was at
most above what it was with the inputs made, results included; seconds are the fastest call of all rounds, and
`CPU` the least processor time of one, which says more on a busy machine.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import time

MIB = 2**20


def inputs_of(args):
  """numpy x [batch, time, width], weights [vocabulary, width], targets [batch, time]."""
  import numpy as np

  draw = np.random.default_rng(0)
  x = draw.standard_normal((args.batch, args.time, args.width), np.float32)
  weights = 0.02 * draw.standard_normal((args.vocabulary, args.width), np.float32)
  return x, weights, draw.integers(0, args.vocabulary, (args.batch, args.time), np.int32)


def ours(args, dtype, chunk):
  """(call () -> loss, bytes of XLA's temporaries)."""
  import jax
  import jax.numpy as jnp

  from aigc_jax.models.layers import matmul
  from aigc_jax.tasks.losses import cross_entropy

  x, weights, targets = map(jnp.asarray, inputs_of(args))
  x, counts = x.astype(dtype), jnp.ones(x.shape[:2])
  logits_of = lambda weights, x: matmul(x, weights.T).astype(jnp.float32)

  def total(weights, x):
    return cross_entropy(logits_of, weights, x, targets, counts, chunk)[0]

  compiled = jax.jit(jax.value_and_grad(total, (0, 1))).lower(weights, x).compile()
  call = lambda: float(jax.block_until_ready(compiled(weights, x))[0])
  return call, compiled.memory_analysis().temp_size_in_bytes


def theirs(args, dtype):
  """The same of PyTorch, which gives no account of its temporaries."""
  import torch
  from torch.nn import functional as F

  x, weights, targets = map(torch.tensor, inputs_of(args))
  x, targets = x.to(getattr(torch, dtype)).requires_grad_(), targets.long().flatten()
  weights.requires_grad_()

  def call():
    x.grad = weights.grad = None
    logits = F.linear(x, weights.to(x.dtype)).flatten(0, 1).float()
    loss = F.cross_entropy(logits, targets, reduction='sum')
    loss.backward()
    return loss.item()

  return call, None


def resident():
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
  return pages * resource.getpagesize()


def measure(args, dtype, chunk):
  """One variant's figures, as JSON on standard output. chunk: places, 'whole' or 'torch'."""
  made = (
    theirs(args, dtype) if chunk == 'torch' else ours(args, dtype, None if chunk == 'whole' else int(chunk))
  )
  (call, temporaries), before, seconds, busy = made, resident(), [], []
  for _ in range(args.rounds):
    began, worked = time.perf_counter(), time.process_time()
    loss = call()
    seconds.append(time.perf_counter() - began)
    busy.append(time.process_time() - worked)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before  # Linux counts in KiB
  found = {'temporaries': temporaries, 'peak': peak, 'seconds': min(seconds), 'CPU': min(busy), 'loss': loss}
  print(json.dumps(found))


def row(args, dtype, chunk):
  command = [sys.executable, __file__, *sys.argv[1:], f'--variant={dtype},{chunk}']
  done = subprocess.run(command, check=True, capture_output=True, text=True)
  found = json.loads(done.stdout.splitlines()[-1])
  names = {'whole': 'ours, whole', 'torch': 'PyTorch'}
  temporaries = found['temporaries']
  cells = [
    names.get(chunk, f'ours, chunks of {chunk}'),
    dtype,
    '-' if temporaries is None else f'{temporaries / MIB:,.0f}',
    f'{found["peak"] / MIB:,.0f}',
    f'{found["seconds"]:.2f}',
    f'{found["CPU"]:.2f}',
    f'{found["loss"] / (args.batch * args.time):.5f}',
  ]
  return '| ' + ' | '.join(cells) + ' |'


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  sizes = {'batch': 8, 'time': 512, 'width': 768, 'vocabulary': 50257, 'rounds': 3}
  for name, size in sizes.items():
    parser.add_argument(f'--{name}', type=int, default=size)
  parser.add_argument('--chunks', default='256,64,16', help='places of each row at a time')
  parser.add_argument('--types', default='float32', help='of the product: float32,bfloat16')
  parser.add_argument('--no-torch', action='store_true')
  parser.add_argument('--variant', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.variant:
    measure(args, *args.variant.split(','))
    return
  print(f'{args.batch} x {args.time} x {args.width}, a vocabulary of {args.vocabulary:,}; MiB and seconds\n')
  print('| variant | product | temporaries | peak | seconds | CPU | nats a place |\n' + '|---' * 7 + '|')
  for dtype in args.types.split(','):
    for chunk in ['whole', *args.chunks.split(','), *([] if args.no_torch else ['torch'])]:
      print(row(args, dtype, chunk), flush=True)


if __name__ == '__main__':
  main()
