"""Learning from images without labels: two views of each are told from those of all others (SimCLR).

  aigc train --config=configs/contrastive.py              a convolutional network on the 4,000 images of the package

Evaluations say what the features are worth to a linear probe and to the nearest neighbours, with ten labelled images of
each class; a map of them is in RUN/samples. A classifier that begins with them:
aigc train --config=configs/classifier.py --config.init_from=RUN
"""

import ml_collections

from aigc_jax.sweeps.space import sweep

VARIANTS = ('', 'resnet')


def get_config(variant=''):
  if variant not in VARIANTS:
    raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS[1:])}')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = dict(name='contrastive', temperature=0.2)
  config.model = dict(name='cnn')
  config.data = dict(source='bundled:fashion_mnist_5k', batch_size=256)
  config.optimizer = dict(
    name='adamw', learning_rate=2e-3, schedule='cosine', warmup_steps=50, weight_decay=0.05
  )
  config.training = dict(
    steps=1000,
    evaluate_every=200,
    checkpoint_every=500,
    sample_every=500,
    best_metric='validation/probe_accuracy',
  )
  if variant == 'resnet':
    config.model = dict(name='resnet', channels=(16, 32, 64))
  return config


def sweep_temperature():
  return sweep('task.temperature', (0.05, 0.1, 0.2, 0.5, 1.0))
