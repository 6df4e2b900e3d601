"""Which fields a config has, by every task, model and optimizer that there is, and configs resolved by them."""

import os

from aigc_jax import models, tasks
from aigc_jax import run as run_folder
from aigc_jax.config import Schemas, load_file, override, resolve
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
  return resolve(override(config, list(overrides), known), known)
