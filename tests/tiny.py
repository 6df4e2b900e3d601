"""The smallest language model that trains through the real path, on a text of its own: for tests of runs."""

import contextlib
import random

import jax
from jax.experimental.compilation_cache import compilation_cache

from aigc_jax import api

WORDS = ['whale', 'ship', 'sea', 'captain', 'harpoon', 'mast', 'sailor', 'storm', 'anchor', 'island', 'rope']
STEPS = 12


def write_corpus(path, words=600, seed=0):
  """A text of `words` words, about 3,500 characters; returns data.source."""
  draw = random.Random(seed)
  path.write_text(' '.join(draw.choice(WORDS) for _ in range(words)) + '.\n', encoding='utf-8')
  return f'text:{path}'


def config(source, **sections):
  """Of one layer, 12 steps, evaluated and saved every 4; `sections` replace fields: training={'steps': 8}."""
  made = {
    'task': {'name': 'language', 'sample_tokens': 4},
    'model': {'name': 'transformer', 'layers': 1, 'heads': 2, 'width': 16},
    'data': {'source': source, 'sequence_length': 16, 'batch_size': 4},
    'optimizer': {'name': 'adamw', 'learning_rate': 1e-2},
    'training': {
      'steps': STEPS,
      'log_every': 1,
      'evaluate_every': 4,
      'checkpoint_every': 4,
      'sample_every': None,
      'tensorboard': False,
    },
    'parallel': {'data': 1},
  }
  for section, fields in sections.items():
    made[section] = made.get(section, {}) | fields if isinstance(fields, dict) else fields
  return made


def train(config, folder, **options):
  return api.train(config, folder, quiet=True, **options)


def write_config(path, source, **sections):
  """A config file that returns it; returns its name."""
  path.write_text(f'def get_config(variant=""):\n  return {config(source, **sections)!r}\n', encoding='utf-8')
  return str(path)


@contextlib.contextmanager
def compile_cache(folder):
  """Programs compiled inside are kept in `folder` for the other runs inside, and for the processes they start."""
  settings = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  before = {name: getattr(jax.config, name) for name in settings}
  jax.config.update(settings[0], str(folder))
  jax.config.update(settings[1], 0.0)
  compilation_cache.reset_cache()
  try:
    yield
  finally:
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()
