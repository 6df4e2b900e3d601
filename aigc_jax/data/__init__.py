"""Data, from files to batches. Its form follows from what the task learns from and the kind of the source."""

import importlib
from typing import NamedTuple

from aigc_jax.data.pipeline import Dataset
from aigc_jax.errors import UsageError, listed


class Form(NamedTuple):
  """How data of one form is read: a module with `load` and `load_validation`."""

  module: str
  schema: str  # the dataclass of `config.data` in it
  kept: tuple  # what a trained model has of its data, and `load_validation` takes


FORMS = {
  'text': Form('pipeline', 'TextData', ('tokenizer',)),
  'images': Form('images', 'ImageData', ('class_names', 'image_shape')),
  'labelled_text': Form('labelled_text', 'LabelledTextData', ('tokenizer', 'class_names')),
  'masked_text': Form('masked_text', 'MaskedTextData', ('tokenizer',)),
  'image_tokens': Form('image_tokens', 'ImageTokensData', ('tokenizer',)),
  'pairs': Form('pairs', 'PairData', ('tokenizer',)),
  'environment': Form('environments', 'EnvironmentData', ()),
  'synthetic_pairs': Form('synthetic_pairs', 'SyntheticPairsData', ('tokenizer',)),
}
# what each kind of source can be
KINDS = {
  'text': ('text', 'masked_text'),
  'jsonl': ('text', 'labelled_text', 'masked_text', 'pairs'),
  'tsv': ('labelled_text', 'pairs'),
  'images': ('images',),
  'npz': ('images',),
  'idx': ('images',),
  'tfds': ('images',),
  'run': ('image_tokens',),
  'synthetic': ('synthetic_pairs',),
  'environment': ('environment',),
  'gymnax': ('environment',),
}
BUNDLED_FORMS = {
  'moby_dick': ('text', 'masked_text'),
  'song_ci': ('text', 'labelled_text', 'masked_text', 'pairs'),
  'en_zh': ('pairs',),
  'fashion_mnist_5k': ('images',),
}

__all__ = ['Dataset', 'form_of', 'load', 'load_validation', 'schema']


def form_of(source, accepted):
  """The form of a source, of those that a task accepts; an unknown kind has the first, which will refuse it.

  Raises UsageError where the task cannot learn from such data.
  """
  kind, _, place = (source or '').partition(':')
  forms = KINDS.get(kind, accepted)
  if kind == 'bundled':
    forms = BUNDLED_FORMS.get(place, accepted)
  fitting = [form for form in forms if form in accepted]
  if not fitting:
    kinds = [f'{kind}:' for kind, forms in KINDS.items() if set(forms) & set(accepted)]
    raise UsageError(
      f'config.data.source: {source!r} is {spoken(forms)}, and the task learns from {spoken(accepted)}: '
      f'{listed(kinds)} or bundled:'
    )
  return fitting[0]


def spoken(forms):
  return ' or '.join(form.replace('_', ' ') for form in forms)


def room(form):
  return importlib.import_module(f'aigc_jax.data.{FORMS[form].module}')


def schema(form):
  """The dataclass of `config.data` for data of that form."""
  return getattr(room(form), FORMS[form].schema)


def load(config, tokenizer=None, form='text'):
  """The Dataset that `config.data` describes; `tokenizer`, where given, is used instead of making one.

  Raises UsageError (config), DataError (files, too little data), StorageError (the cache cannot be written).
  """
  return room(form).load(config, *([tokenizer] if 'tokenizer' in FORMS[form].kept else []))


def load_validation(config, tokenizer=None, class_names=None, form='text', image_shape=None):
  """As `load`, with all of `source` as the validation split and no training batches: for a trained model."""
  known = {'tokenizer': tokenizer, 'class_names': class_names, 'image_shape': image_shape}
  return room(form).load_validation(config, *(known[name] for name in FORMS[form].kept))
