"""Few labels: what learning without labels gives on Fashion-MNIST, in per cent of the test images told right.

  python benchmarks/few_labels.py [--seeds=0,1,2] [--labels=1,5,10,40] [--encoders=cnn,vit] [--steps=...] [--source=...]

Rows: a linear probe on raw pixels; on the features of an encoder as it begins; on those of one trained by
configs/contrastive.py and by configs/masked_images.py, which see all training images and no label; and the same network
trained from nothing, by configs/classifier.py, on the labelled images alone. Each seed has other labelled images, the
same for all rows, other parameters and other noise.
"""

import argparse
import pathlib
import tempfile
from functools import partial

import jax
import numpy as np

from aigc_jax import api
from aigc_jax.data.image_sources import open_images
from aigc_jax.tasks import representations

SILENT = [('training.evaluate_every', 'none'), ('training.sample_every', 'none')]
ENCODERS = {
  'cnn': {'contrastive': 'configs/contrastive.py', 'masked images': 'configs/masked_images.py'},
  'vit': {'masked images': 'configs/masked_images.py:vit'},
}


def shuffled(source, seed, path):
  """Writes the images of a source, those that train in another order, and gives (their source, their parts)."""
  opened = open_images(source)
  parts = {name: opened.parts[name] for name in opened.parts}
  order = np.random.default_rng(seed).permutation(len(parts['train'].images))
  parts['train'] = type(parts['train'])(*(array[order] for array in parts['train']))
  arrays = {f'{name}_{kind}': getattr(part, kind) for name, part in parts.items() for kind in part._fields}
  np.savez(path, **arrays)
  return f'npz:{path}', parts


def probed(features_of, parts, counts):
  """{labels of each class: part of the test images told right} by linear probes on features."""
  train, test = parts['train'], parts['test']
  asked = features_of(test.images)
  found = {}
  for count in counts:
    known = representations.labelled(train._asdict(), count, 10)
    few = features_of(np.asarray(known['images']))
    guess = jax.jit(representations.linear_probe, static_argnums=2)(few, known['labels'], 10, asked)
    found[count] = float((np.asarray(guess) == test.labels).mean())
  return found


def learned(config, source, seed, parts, counts, folder, changes=()):
  """As `probed`, of the run of a config that learns without labels."""
  changes = [('data.source', source), ('seed', seed), ('data.seed', seed), *SILENT, *changes]
  run = api.train(config, folder, changes, quiet=True)
  return probed(run.features, parts, counts)


def from_nothing(model, source, seed, counts, folder):
  """{labels of each class: part of the test images told right} of classifiers that see the labelled images alone."""
  found = {}
  for count in counts:
    changes = [('data.source', source), ('seed', seed), ('data.seed', seed), ('data.images_per_class', count)]
    changes += [('data.batch_size', min(10 * count, 64)), ('task.flip', False), ('training.steps', 400)]
    changes += [('training.evaluate_every', 400), SILENT[1]]
    config = api.read_config('configs/classifier.py:cnn', changes) | ({'model': model} if model else {})
    run = api.train(config, folder / str(count), quiet=True)
    found[count] = run.metrics[-1]['validation/accuracy']
  return found


def pixels(images):
  return images.reshape(len(images), -1).astype(np.float32) / 255


def rows_of(seed, arguments, counts, folder):
  """(name of a row, what `probed` gives), one after another."""
  source, parts = shuffled(arguments.source, seed, folder / 'images.npz')
  yield 'raw pixels', probed(pixels, parts, counts)
  for encoder in arguments.encoders.split(','):
    configs = ENCODERS[encoder]
    model = api.read_config(configs['masked images'])['model']
    model = None if encoder == 'cnn' else dict(model)
    yield (
      f'{encoder}, from nothing on the labels',
      from_nothing(model, source, seed, counts, folder / encoder),
    )
    learn = partial(learned, source=source, seed=seed, parts=parts, counts=counts)
    nothing = [('training.steps', 1), ('optimizer.learning_rate', 0.0)]
    untrained = learn(configs['masked images'], folder=folder / f'{encoder}-untrained', changes=nothing)
    yield f'{encoder}, probe as it begins', untrained
    steps = [('training.steps', arguments.steps)] if arguments.steps else []
    for task, config in configs.items():
      yield (
        f'{encoder}, probe after {task}',
        learn(config, folder=folder / f'{encoder}-{task}', changes=steps),
      )


def main():
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--seeds', default='0,1,2')
  parser.add_argument('--labels', default='1,5,10,40')
  parser.add_argument('--encoders', default='cnn,vit')
  parser.add_argument('--steps', type=int, help='of learning without labels; else those of the configs')
  parser.add_argument('--source', default='bundled:fashion_mnist_5k')
  arguments = parser.parse_args()
  counts, found = [int(n) for n in arguments.labels.split(',')], {}
  for seed in map(int, arguments.seeds.split(',')):
    with tempfile.TemporaryDirectory() as folder:
      for name, row in rows_of(seed, arguments, counts, pathlib.Path(folder)):
        print(f'seed {seed}: {name}: ' + '  '.join(f'{n}: {row[n]:.1%}' for n in counts), flush=True)
        found.setdefault(name, []).append([row[n] for n in counts])
  print(
    '\n| labels of each class | ' + ' | '.join(map(str, counts)) + ' |\n' + '|---' * (len(counts) + 1) + '|'
  )
  for name, rows in found.items():
    mean, spread = 100 * np.mean(rows, 0), 100 * np.std(rows, 0, ddof=min(1, len(rows) - 1))
    print(f'| {name} | ' + ' | '.join(f'{m:.1f} ± {s:.1f}' for m, s in zip(mean, spread, strict=True)) + ' |')


if __name__ == '__main__':
  main()
