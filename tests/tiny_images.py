"""The smallest models of images that train through the real path, on images of their own: for tests of runs."""

import numpy as np

from tests import tiny

CLASSES, SIDE = 3, 8
MODELS = {
  'mlp': {'name': 'mlp', 'widths': [8]},
  'resnet': {'name': 'resnet', 'channels': [4, 6], 'dropout': 0.2},
  'vae': {'name': 'autoencoder', 'widths': [8], 'latent_width': 2},
  'conditional': {'name': 'autoencoder', 'widths': [8], 'latent_width': 2, 'conditional': True},
  'vq': {
    'name': 'vq_autoencoder',
    'widths': [6],
    'residual_blocks': 1,
    'residual_width': 4,
    'code_width': 4,
    'codebook_size': 8,
  },
}
MODELS |= {
  'contrastive': MODELS['resnet'],
  'masked_images': {'name': 'vision_transformer', 'layers': 1, 'heads': 2, 'width': 8, 'patch_size': 2},
}
CLASSIFIERS = ('mlp', 'resnet')
UNLABELLED = {
  'contrastive': {'labels_per_class': 2, 'projection_widths': [8, 4]},
  'masked_images': {'labels_per_class': 2, 'crop_size': 2, 'hidden_units': 8, 'channels': [4]},
}


def write_images(path, train=40, test=11, seed=0, **changes):
  """Stripes whose direction, or a plain, tells the class, with noise; returns data.source.

  `changes` replace arrays of the file.
  """
  draw = np.random.default_rng(seed)
  line = np.tile([40, 215], SIDE // 2)
  means = np.stack([np.tile(line, (SIDE, 1)), np.tile(line[:, None], (1, SIDE)), np.full((SIDE, SIDE), 128)])

  def part(name, count):
    labels = np.arange(count) % CLASSES
    images = np.clip(means[labels] + draw.normal(0, 20, (count, SIDE, SIDE)), 0, 255).astype(np.uint8)
    return {f'{name}_images': images, f'{name}_labels': labels}

  np.savez(path, **(part('train', train) | part('test', test) | changes))
  return f'npz:{path}'


def config(source, family, **sections):
  """The config of `tiny.config` for images; `sections` replace fields: training={'steps': 8}."""
  task = {'name': 'classification' if family in CLASSIFIERS else 'autoencoding'}
  if family in UNLABELLED:
    task = UNLABELLED[family] | {'name': family}
  if family == 'vq':
    task['codebook_decay'] = 0.8
  made = tiny.config(source) | {
    'task': task,
    'model': MODELS[family],
    'data': {'source': source, 'batch_size': 8},
  }
  for section, fields in sections.items():
    made[section] = made.get(section, {}) | fields if isinstance(fields, dict) else fields
  return made


def write_config(path, source, family, **sections):
  """A config file that returns it; returns its name."""
  made = config(source, family, **sections)
  path.write_text(f'def get_config(variant=""):\n  return {made!r}\n', encoding='utf-8')
  return str(path)
