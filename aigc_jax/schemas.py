"""Which fields a config has, by every task, model and optimizer that there is, and configs resolved by them."""

import os

from aigc_jax import models, tasks
from aigc_jax import run as run_folder
from aigc_jax.config import Schemas, fields_of, load_file, override, resolve
from aigc_jax.errors import UsageError
from aigc_jax.training.optimizer import OptimizerConfig


def schemas():
  return Schemas(tasks.SCHEMAS, models.SCHEMAS, OptimizerConfig, tasks.data_schema)


def resolved(config):
  return resolve(config, schemas())


def config_of(path):
  """The resolved config of a run folder. Raises UsageError, also for one whose fields are not known any more."""
  config = run_folder.open_run(path).config
  try:
    return resolved(config)
  except UsageError as error:
    raise UsageError(f'{path}/{run_folder.CONFIG}: {error}') from None


def read_config(config, overrides=()):
  """The resolved config of 'FILE.py:VARIANT', a ConfigDict or nested dicts. Raises UsageError."""
  config, known = load_file(str(config)) if isinstance(config, str | os.PathLike) else config, schemas()
  return resolve(inherit(override(config, list(overrides), known), known), known)


def inherit(config, known):
  """A config with the model that `config.init_from` names: fields that are not given are as they are there.

  So is the tokenizer. A model of another name takes the fields that it has, too: a classifier those of an encoder.
  """
  path = config.get('init_from')
  if not path or not isinstance(path, str) or not isinstance(config.get('model', {}), dict):
    return config
  try:
    there, model = config_of(run_folder.of_checkpoint(path)[0]), config.get('model', {})
  except UsageError:
    return config  # it may be gone where a run goes on; who needs it says what is wrong
  name = model.get('name', there['model']['name'])
  if name not in known.model:
    return config  # which is refused with what there is
  own = fields_of(known.model[name])
  taken = {field: value for field, value in there['model'].items() if field in own and field != 'name'}
  config = config | {'model': {'name': name} | taken | model}
  if 'tokenizer' in there['data'] and 'tokenizer' in known.sections(config)['data']:
    config = config | {'data': {'tokenizer': there['data']['tokenizer']} | config.get('data', {})}
  return config
