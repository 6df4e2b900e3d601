"""What can be learned: one file a task, with its schema, its builder, and what it takes from the data."""

import dataclasses
import types
from typing import Any, NamedTuple

from aigc_jax import data, models, own_code
from aigc_jax.config import expected, fields_of
from aigc_jax.errors import UsageError, listed, nearest
from aigc_jax.tasks import (
  autoencoding,
  classification,
  contrastive,
  language,
  lora,
  masked_images,
  masked_language,
  q_learning,
  translation,
)


class Kind(NamedTuple):
  """One kind of learning."""

  room: Any  # its module: build(config) -> Task, complete(config, dataset) -> config
  schema: Any  # the dataclass of `config.task`
  models: tuple  # that it can train
  data: tuple  # forms of data that it learns from


KINDS = {
  'language': Kind(language, language.LanguageConfig, ('transformer', 'rnn'), ('text', 'image_tokens')),
  'masked_language': Kind(
    masked_language, masked_language.MaskedLanguageConfig, ('transformer_encoder',), ('masked_text',)
  ),
  'autoencoding': Kind(autoencoding, autoencoding.AutoencodingConfig, autoencoding.MODELS, ('images',)),
  'classification': Kind(
    classification, classification.ClassificationConfig, classification.MODELS, ('images', 'labelled_text')
  ),
  'contrastive': Kind(contrastive, contrastive.ContrastiveConfig, contrastive.MODELS, ('images',)),
  'masked_images': Kind(masked_images, masked_images.MaskedImagesConfig, masked_images.MODELS, ('images',)),
  'q_learning': Kind(q_learning, q_learning.QLearningConfig, q_learning.MODELS, ('environment',)),
  'translation': Kind(
    translation, translation.TranslationConfig, translation.MODELS, ('pairs', 'synthetic_pairs')
  ),
}
SCHEMAS = {name: kind.schema for name, kind in KINDS.items()}
FORMS, MODELS = data.FORMS, models.SCHEMAS


@dataclasses.dataclass(frozen=True)
class NoFields:
  """The schema of a task without settings."""


def own_kind(build, complete=None, schema=NoFields, data=('text',), models=(), higher_is_better=()):
  """A task of the user's own: `KIND = own_kind(build)` in my_task.py is config.task.name = 'my_task:KIND'.

  Args:
    build: resolved config, whose floats may be traced -> Task.
    complete: config, Dataset -> config with the fields that the data decides; None: `filled_in`.
    schema: a dataclass of config.task. data: the forms of data that it learns from, see `data.FORMS`.
    models: which of ours it trains; the user's own are trained by any task.
    higher_is_better: names of metrics of which more is better.

  Raises ValueError and TypeError for what it cannot be made of.
  """
  if not callable(build) or not dataclasses.is_dataclass(schema):
    raise TypeError(f'own_kind takes a function and a dataclass; build is {build!r}, schema is {schema!r}')
  several = lambda given: (given,) if isinstance(given, str) else tuple(given)
  trained, forms, better = map(several, (models, data, higher_is_better))
  for what, given, known in (('data', forms, FORMS), ('models', trained, MODELS)):
    for name in given:
      if name not in known:
        raise ValueError(f'{what}: {name!r} is not known; {nearest(name, known)}there are {listed(known)}')
  room = types.SimpleNamespace(build=build, complete=complete or filled_in, HIGHER_IS_BETTER=better)
  return Kind(room, schema, trained, forms)


def filled_in(config, dataset):
  """The config with what the data knows in those fields of the model that are open and called so."""
  known = {name: dataset.facts.get(name) for name in ('image_shape', 'classes')}
  known['context_length'] = dataset.facts.get('sequence_length')
  if dataset.tokenizer is not None:
    known['vocabulary_size'] = dataset.tokenizer.vocabulary_size
  model = config['model']
  open_ones = {name: value for name, value in known.items() if name in model and model[name] is None}
  return config | {'model': model | open_ones}


def kind_of(name):
  """The Kind of a task, ours or the user's own 'module:name'. Raises UsageError for the latter."""
  if own_code.is_own(name):
    is_kind = lambda value: isinstance(value, Kind)
    return own_code.found('task', name, is_kind, 'what aigc_jax.tasks.own_kind gives')
  return KINDS[name]


def schema_of(name):
  return kind_of(name).schema


def form_of(config):
  """The form of the data of a config: 'text', 'images', ... Raises UsageError where the task cannot learn from it."""
  return data.form_of(config['data']['source'], kind_of(config['task']['name']).data)


def data_schema(task, source):
  """The dataclass of `config.data` for a task's name and a source (None: not given)."""
  return data.schema(data.form_of(source, kind_of(task).data))


def check(config):
  """Raises UsageError where the task cannot train the model."""
  task, model = config['task']['name'], config['model']['name']
  ours, where = kind_of(task).models, f'config.model.name: {model!r}'
  if model not in ours and not own_code.is_own(model):
    raise UsageError(
      f'{where} is no model for the task {task!r}, which trains {listed(ours) or "models of your own"}'
    )
  if model in ours or not ours:
    return
  needed = set.intersection(*({*required(MODELS[name])} for name in ours))  # what our tasks fill in
  if lacking := sorted(needed - {*fields_of(models.schema_of(model))}):
    raise UsageError(f'{where} has no field {listed(lacking)}, which the task {task!r} sets in its models')


def build(config):
  """The Task of a resolved config, whose floats may be traced."""
  return lora.adapt(kind_of(config['task']['name']).room.build(config), config['lora'])


def higher_is_better(config):
  """The names of metrics of which more is better, such as 'validation/accuracy'; of all others less is."""
  return [f'validation/{name}' for name in kind_of(config['task']['name']).room.HIGHER_IS_BETTER]


def complete(config, dataset):
  """The resolved config with what the data decides filled in. Raises UsageError where a field is left open."""
  config = kind_of(config['task']['name']).room.complete(config, dataset)
  for section, schema in (('task', schema_of), ('model', models.schema_of)):
    for name, field in required(schema(config[section]['name'])).items():
      if not field.optional and config[section].get(name) is None:
        key = f'config.{section}.{name}'
        raise UsageError(f'{key}: must be given, by --{key}=VALUE; {expected(field)}')
  return config


def required(schema):
  """{name: Field} of those without a default."""
  return {name: field for name, field in fields_of(schema).items() if field.default is dataclasses.MISSING}
