"""The same image classifiers in eager PyTorch: what the throughput benchmark holds ours against.

python benchmarks/peers_torch_classifiers.py [--rounds=8]     both, side by side on this CPU, in images a second
"""

import argparse
import statistics
import time

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

ROWS = 128
SIDE, CLASSES = 28, 10


class Block(nn.Module):
  """A pre-activation residual block (He et al. 2016)."""

  def __init__(self, inputs, features, stride):
    super().__init__()
    self.norm_0, self.norm_1 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(features)
    self.convolution_0 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
    self.convolution_1 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    changes = stride > 1 or inputs != features
    self.shortcut = nn.Conv2d(inputs, features, 1, stride, bias=False) if changes else None

  def forward(self, x):
    y = self.norm_0(x).relu()
    x = x if self.shortcut is None else self.shortcut(y)
    return x + self.convolution_1(self.norm_1(self.convolution_0(y)).relu())


def resnet(channels=(32, 64, 128), blocks=1):
  parts, before = [nn.Conv2d(1, channels[0], 3, 1, 1, bias=False)], channels[0]
  for stage, features in enumerate(channels):
    for i in range(blocks):
      parts.append(Block(before, features, 2 if stage and not i else 1))
      before = features
  parts += [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
  return nn.Sequential(*parts, nn.Linear(before, CLASSES))


def cnn(dense_width=128):
  part = lambda inputs, features: (nn.Conv2d(inputs, features, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2))
  flat = 64 * (SIDE // 4) ** 2
  dense = nn.Linear(flat, dense_width), nn.ReLU(), nn.Linear(dense_width, CLASSES)
  return nn.Sequential(*part(1, 32), *part(32, 64), nn.Flatten(), *dense)


def mlp(widths=(128, 64)):
  sizes = (SIDE * SIDE, *widths)
  hidden = [part for pair in zip(sizes, widths, strict=False) for part in (nn.Linear(*pair), nn.ReLU())]
  return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(widths[-1], CLASSES))


MODELS = {'mlp': mlp, 'cnn': cnn, 'resnet': resnet}


def make_step(name, channels_last=False, seed=0):
  """A function (images [batch, 1, height, width], labels [batch]) -> loss that takes one AdamW step.

  `channels_last`: the layout of memory that PyTorch's documentation advises for convolutions.
  """
  torch.manual_seed(seed)
  model = MODELS[name]().train()
  if channels_last:
    model = model.to(memory_format=torch.channels_last)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

  def step(images, labels):
    images = images.contiguous(memory_format=torch.channels_last) if channels_last else images
    loss = F.cross_entropy(model(images), labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.item()

  return step


def make_batch():
  draw = np.random.default_rng(0)
  images = draw.integers(0, 256, (ROWS, SIDE, SIDE, 1), dtype=np.uint8)
  return images, draw.integers(0, CLASSES, ROWS).astype(np.int32)


def theirs(name, channels_last):
  step, (images, labels) = make_step(name, channels_last), make_batch()
  images, labels = torch.tensor(images).permute(0, 3, 1, 2).float() / 255, torch.tensor(labels).long()
  return lambda steps: [step(images, labels) for _ in range(steps)][-1]


def ours(name):
  """A function (steps) that takes as many of the step that `aigc train` runs."""
  import jax

  from aigc_jax import config as configs
  from aigc_jax import models, tasks
  from aigc_jax.training import parallel
  from aigc_jax.training.optimizer import OptimizerConfig

  config = configs.resolve(
    {
      'task': {'name': 'classification'},
      'model': {'name': name, 'image_shape': [SIDE, SIDE, 1], 'classes': CLASSES},
      'data': {'batch_size': ROWS},
      'optimizer': {'name': 'adamw', 'learning_rate': 1e-3, 'schedule': 'constant', 'weight_decay': 0.05},
    },
    configs.Schemas(tasks.SCHEMAS, models.SCHEMAS, OptimizerConfig),
  )
  program = parallel.make_parallel(config, tasks.build, jax.devices()[:1])
  floats, (images, labels) = program.put_floats(configs.floats_of(config)), make_batch()
  batch = program.put_batch({'images': images, 'labels': labels, 'mask': np.ones(ROWS, np.float32)})
  state = program.init(floats, jax.random.key(0), batch)

  def run(steps):
    nonlocal state
    for _ in range(steps):
      state, metrics = program.step(floats, state, batch)
    return float(metrics['loss'])

  return run


def race(runs, rounds):
  """{name: run(steps)} -> {name: seconds of a step in each burst}, the runs taking turns."""
  steps, seconds = {}, {name: [] for name in runs}
  for name, run in runs.items():
    run(3)  # compiles, and warms up
    start = time.perf_counter()
    run(1)
    steps[name] = max(1, round(0.5 / (time.perf_counter() - start)))
  for _ in range(rounds):
    for name, run in runs.items():
      time.sleep(0.3)  # lets the other library's threads stop spinning
      start = time.perf_counter()
      run(steps[name])
      seconds[name].append((time.perf_counter() - start) / steps[name])
  return seconds


def main():
  from aigc_jax import memory

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--rounds', type=int, default=8)
  parser.add_argument('--model', choices=MODELS, help='default: all')
  args = parser.parse_args()
  memory.keep_freed_memory()
  print('images/s, fastest burst (median); ratio to eager PyTorch in its faster layout')
  for name in [args.model] if args.model else MODELS:
    runs = {'ours': ours(name), 'torch': theirs(name, False), 'torch channels last': theirs(name, True)}
    seconds = race(runs, args.rounds)
    best, middle = ({k: ROWS / f(v) for k, v in seconds.items()} for f in (min, statistics.median))
    for run in runs:
      ratio, typical = (at[run] / max(at['torch'], at['torch channels last']) for at in (best, middle))
      print(
        f'{name:>8}  {run:>20}  {best[run]:8,.0f} ({middle[run]:,.0f})  {ratio:.2f} ({typical:.2f})',
        flush=True,
      )


if __name__ == '__main__':
  main()
