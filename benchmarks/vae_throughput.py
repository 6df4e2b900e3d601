"""Training images per second of our dense VAE (784-400-20-400-784, batch 128) against PyTorch, taking turns.

  python benchmarks/vae_throughput.py [--rounds=8] [--fixed] [--no-compiled]

Each step takes 128 of 4,000 images, makes their pixels binary anew (--fixed: leaves them) and does one Adam step.
"""

import argparse
import statistics

from aigc_jax import memory

memory.keep_freed_memory()

import jax  # noqa: E402
import numpy as np  # noqa: E402
import peers_torch_vae  # noqa: E402
import torch  # noqa: E402
from training_throughput import race  # noqa: E402

from aigc_jax import config as configs  # noqa: E402
from aigc_jax import models, tasks  # noqa: E402
from aigc_jax.training import parallel  # noqa: E402
from aigc_jax.training.optimizer import OptimizerConfig  # noqa: E402

BATCH, IMAGES = 128, 4000


def make_images():
  """uint8 [images, 28, 28, 1]: mostly dark, as Fashion-MNIST is."""
  draw = np.random.default_rng(0)
  return (draw.integers(0, 256, (IMAGES, 28, 28, 1)) * (draw.random((IMAGES, 28, 28, 1)) < 0.5)).astype(
    np.uint8
  )


def ours(binarizes):
  """A function (steps) that takes as many of the step that `aigc train` runs."""
  config = configs.resolve(
    {
      'task': {'name': 'autoencoding'},
      'model': {'name': 'autoencoder', 'image_shape': (28, 28, 1)},
      'data': {'batch_size': BATCH},
      'optimizer': {'name': 'adam', 'learning_rate': 1e-3, 'schedule': 'constant'},
    },
    configs.Schemas(tasks.SCHEMAS, models.SCHEMAS, OptimizerConfig),
  )
  config['data']['binarization'] = 'dynamic' if binarizes else None
  program = parallel.make_parallel(config, tasks.build, jax.devices()[:1])
  floats = program.put_floats(configs.floats_of(config))
  resident = jax.device_put({'images': make_images(), 'labels': np.zeros(IMAGES, np.int32)})
  draw, mask = np.random.default_rng(1), np.ones(BATCH, np.float32)

  def batch():
    rows = draw.integers(0, IMAGES, BATCH, dtype=np.int32)
    return program.put_batch({'rows': rows, 'mask': mask}) | {'resident': resident}

  state = program.init(floats, jax.random.key(0), batch())

  def run(steps):
    nonlocal state
    for _ in range(steps):
      state, metrics = program.step(floats, state, batch())
    return float(metrics['loss'])

  return run


def theirs(binarizes, compiled):
  step = peers_torch_vae.make_step(compiled, binarizes)
  images, draw = torch.tensor(make_images()).reshape(IMAGES, -1), np.random.default_rng(1)

  def run(steps):
    for _ in range(steps):
      loss = step(images[torch.from_numpy(draw.integers(0, IMAGES, BATCH))].float() / 255)
    return loss

  return run


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rounds', type=int, default=8)
  parser.add_argument('--fixed', action='store_true', help='do not binarize')
  parser.add_argument('--no-compiled', action='store_true', help='leave torch.compile out')
  args = parser.parse_args()
  runs = {'ours': ours(not args.fixed), 'torch eager': theirs(not args.fixed, compiled=False)}
  if not args.no_compiled:
    runs['torch compiled'] = theirs(not args.fixed, compiled=True)
  seconds = race(runs, args.rounds)
  print('images/s, fastest burst (median); ratio to eager PyTorch')
  best, middle = ({k: BATCH / f(v) for k, v in seconds.items()} for f in (min, statistics.median))
  for run in runs:
    ratio = f'{best[run] / best["torch eager"]:.2f} ({middle[run] / middle["torch eager"]:.2f})'
    print(f'{run:>14}  {best[run]:8,.0f} ({middle[run]:,.0f})  {ratio}')


if __name__ == '__main__':
  main()
