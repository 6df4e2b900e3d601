"""Learning from images without labels: crops are hidden, and given back.

  aigc train --config=configs/masked_images.py            a convolutional network on the 4,000 images of the package
  aigc train --config=configs/masked_images.py:vit        a small Transformer that sees patches

Evaluations say what the features are worth to a linear probe and to the nearest neighbours, with ten labelled images of
each class; images given back and a map of the features are in RUN/samples. A classifier that begins with them:
aigc train --config=configs/classifier.py --config.init_from=RUN
"""

import ml_collections

from aigc_jax.sweeps.space import sweep

VARIANTS = ('', 'vit')


def get_config(variant=''):
  if variant not in VARIANTS:
    raise ValueError(f'no variant {variant!r}; there are {", ".join(VARIANTS[1:])}')
  config = ml_collections.ConfigDict()
  config.seed = 0
  config.task = dict(name='masked_images')
  config.model = dict(name='cnn')
  config.data = dict(source='bundled:fashion_mnist_5k', batch_size=128)
  config.optimizer = dict(
    name='adamw', learning_rate=2e-3, schedule='cosine', warmup_steps=50, weight_decay=0.05
  )
  config.training = dict(
    steps=2000,
    evaluate_every=400,
    checkpoint_every=1000,
    sample_every=1000,
    best_metric='validation/probe_accuracy',
  )
  if variant == 'vit':
    config.model = dict(name='vision_transformer', layers=4, heads=4, width=64, patch_size=7)
    config.task.update(crop_size=7, hidden=0.5)
  return config


def sweep_hidden():
  return sweep('task.hidden', (0.3, 0.45, 0.6, 0.75, 0.9))
