"""What can be learned: one file a task, with its schema, its builder, and what it takes from the data."""

from typing import Any, NamedTuple

from aigc_jax import data
from aigc_jax.errors import UsageError, listed
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


def form_of(config):
  """The form of the data of a config: 'text', 'images', ... Raises UsageError where the task cannot learn from it."""
  return data.form_of(config['data']['source'], KINDS[config['task']['name']].data)


def data_schema(task, source):
  """The dataclass of `config.data` for a task's name and a source (None: not given)."""
  return data.schema(data.form_of(source, KINDS[task].data))


def check(config):
  """Raises UsageError where the task cannot train the model."""
  task, model = config['task']['name'], config['model']['name']
  if model not in KINDS[task].models:
    raise UsageError(
      f'config.model.name: {model!r} is no model for the task {task!r}, which trains {listed(KINDS[task].models)}'
    )


def build(config):
  """The Task of a resolved config, whose floats may be traced."""
  return lora.adapt(KINDS[config['task']['name']].room.build(config), config['lora'])


def higher_is_better(config):
  """The names of metrics of which more is better, such as 'validation/accuracy'; of all others less is."""
  return [f'validation/{name}' for name in KINDS[config['task']['name']].room.HIGHER_IS_BETTER]


def complete(config, dataset):
  """The resolved config with what the data decides filled in."""
  return KINDS[config['task']['name']].room.complete(config, dataset)
