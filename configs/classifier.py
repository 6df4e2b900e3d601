"""Image classifiers on Fashion-MNIST: ten kinds of clothes, 28 x 28 pixels.

  aigc train --config=configs/classifier.py:mlp           a multilayer perceptron
  aigc train --config=configs/classifier.py:cnn           two convolutions, with dropout (also without a variant)
  aigc train --config=configs/classifier.py:resnet        a residual network with batch normalization
  aigc train --config=configs/classifier.py:cnn_full      the same on all 60,000 images, minutes
  aigc train --config=configs/classifier.py:resnet_full   the larger one: 20 epochs, half an hour and more on a laptop

The first three learn from the 4,000 training images that come with the package. The full set is looked for where
Debian's package dataset-fashion-mnist puts it; elsewhere: --config.data.source=idx:FOLDER. Own images, a folder for
each class: --config.data.source=images:FOLDER
"""

import ml_collections

from aigc_jax.sweeps.space import sweep

FULL = 'idx:/usr/share/datasets/fashion-mnist'
VARIANTS = ('', 'mlp', 'cnn', 'resnet', 'cnn_full', 'resnet_full')


def get_config(variant=''):
  if variant not in VARIANTS:
    raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS[1:])}')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = dict(name='classification')
  config.model = dict(name='cnn')
  config.data = dict(source='bundled:fashion_mnist_5k', batch_size=64)
  config.optimizer = dict(name='adamw', schedule='cosine')
  config.training = dict(best_metric='validation/accuracy')
  {'': cnn, 'mlp': mlp, 'cnn': cnn, 'resnet': resnet, 'cnn_full': cnn_full, 'resnet_full': resnet_full}[
    variant
  ](config)
  return config


def every(config, steps, interval):
  config.training.update(steps=steps, evaluate_every=interval, checkpoint_every=interval, sample_every=steps)


def mlp(config):
  config.model.update(name='mlp', widths=(128, 64), dropout=0.2)
  config.optimizer.update(learning_rate=1e-3, weight_decay=0.05)
  every(config, 1500, 300)


def cnn(config):
  config.model.update(name='cnn', dropout=0.4)
  config.task.update(flip=True)
  config.optimizer.update(learning_rate=2e-3, weight_decay=0.05, warmup_steps=50)
  every(config, 1500, 300)


def resnet(config):
  config.model.update(name='resnet', channels=(16, 32, 64))
  config.task.update(flip=True, crop=2)
  config.optimizer.update(learning_rate=3e-3, weight_decay=0.05, warmup_steps=50)
  every(config, 1000, 250)


def cnn_full(config):
  """Batches of 128: an epoch is 469 steps."""
  cnn(config)
  config.model.update(dense_width=256)
  config.data.update(source=FULL, batch_size=128)
  config.optimizer.update(warmup_steps=200)
  every(config, 20 * 469, 2 * 469)


def resnet_full(config):
  config.model.update(name='resnet')
  config.data.update(source=FULL, batch_size=128)
  config.task.update(flip=True, crop=2)
  config.optimizer.update(
    name='sgd',
    momentum=0.9,
    nesterov=True,
    learning_rate=0.1,
    weight_decay=5e-4,
    warmup_steps=469,
  )
  every(config, 20 * 469, 2 * 469)


def sweep_learning_rate():
  return sweep('optimizer.learning_rate', (5e-4, 1e-3, 2e-3, 4e-3, 8e-3))
