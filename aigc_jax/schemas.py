"""Which fields a config has, by every task, model and optimizer that there is, and configs resolved by them."""

import functools
import os

from aigc_jax import models, own_code, tasks
from aigc_jax import run as run_folder
from aigc_jax.config import Schemas, fields_of, override, resolve
from aigc_jax.config_files import load_file
from aigc_jax.errors import UsageError
from aigc_jax.interop import checkpoints, folders
from aigc_jax.interop.tokenizer_files import tokenizer_of
from aigc_jax.training.optimizer import OptimizerConfig


def schemas():
  own = {'task': tasks.schema_of, 'model': models.schema_of}
  return Schemas(tasks.SCHEMAS, models.SCHEMAS, OptimizerConfig, tasks.data_schema, own)


def resolved(config):
  return resolve(config, schemas())


def config_of(path, trust=False):
  """The resolved config of a run folder. Raises UsageError, also for one whose fields are not known any more.

  trust: whether to import the models and tasks of its user's own that it names, see `own_code`.
  """
  config = run_folder.open_run(path).config
  if trust:
    own_code.trust(own_code.modules_of(config))
  try:
    return resolved(config)
  except UsageError as error:
    raise UsageError(f'{path}/{run_folder.CONFIG}: {error}') from None


def read_config(config, overrides=(), trust=False):
  """The resolved config of 'FILE.py:VARIANT', a ConfigDict or nested dicts. Raises UsageError.

  trust: as in `config_of`; that holds for the run that `config.init_from` names, too.
  """
  config, known = load_file(str(config)) if isinstance(config, str | os.PathLike) else config, schemas()
  if trust:
    own_code.trust(own_code.modules_of(config, overrides=overrides))
  inherited = functools.partial(inherit, known=known, trust=trust)
  return resolve(inherited(override(config, list(overrides), known, inherited)), known)


def inherit(config, known, trust=False):
  """A config with the model that `config.init_from` names: fields that are not given are as they are there.

  So is the tokenizer. A model of another name takes the fields that it has, too: a classifier those of an encoder.
  """
  path = config.get('init_from')
  sections = [config.get(section, {}) for section in ('model', 'data')]
  if not path or not isinstance(path, str) or not all(isinstance(section, dict) for section in sections):
    return config
  folder, _ = run_folder.of_checkpoint(path)
  if not os.path.exists(folder):
    if sections[0].get('name') is None:
      raise UsageError(
        f'config.init_from: {folder}: no such folder, and nothing else says what config.model is'
      )
    return config  # it may be gone where a run goes on; who needs it says so
  try:
    there, tokenizer = model_and_tokenizer(folder, trust)
  except UsageError as error:
    raise UsageError(f'config.init_from: {error}') from None
  model = config.get('model', {})
  name = model.get('name', there['name'])
  if name not in known.model and not own_code.is_own(name):
    return config  # which is refused with what there is
  own = fields_of(models.schema_of(name))
  taken = {field: value for field, value in there.items() if field in own and field != 'name'}
  config = config | {'model': {'name': name} | taken | model}
  if tokenizer is not None and 'tokenizer' in known.sections(config)['data']:
    config = config | {'data': {'tokenizer': tokenizer} | config.get('data', {})}
  return config


def model_and_tokenizer(folder, trust=False):
  """(`config.model`, the tokenizer's name or None) of a run, or of the files of a pretrained model."""
  if folders.is_one(folder):
    found = checkpoints.open_folder(folder)
    tokenizer = tokenizer_of(found)
    return found.model, None if tokenizer is None else tokenizer.name
  config = config_of(folder, trust)
  return config['model'], config['data'].get('tokenizer')
