"""An experiment from its config: data loaded, and all that can be wrong found, before anything is compiled."""

import os
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax import data, files, models, run, tasks
from aigc_jax.config import floats_of
from aigc_jax.data import image_codes, tokenizers
from aigc_jax.errors import DataError, UsageError, listed, nearest
from aigc_jax.task import Task
from aigc_jax.training import attention, checkpoint, initials, mesh, optimizer, step
from aigc_jax.training.initials import TOKENIZER

FACTS = 'data.json'  # in the run folder: what the data was when the run began


class Experiment(NamedTuple):
  config: dict  # complete
  dataset: Any
  task: Task  # built with the config's own floats: for what is not traced
  devices: list


def fill_in(config):
  """What follows from a resolved config alone: where the decay ends, and places that hold from any folder."""
  decay_steps = config['optimizer']['decay_steps'] or config['training']['steps']
  given = config['data']
  places = {name: absolute(given[name]) for name in ('source', 'validation_source') if name in given}
  if given.get('data_dir'):
    places['data_dir'] = os.path.abspath(os.path.expanduser(given['data_dir']))
  initial = config['init_from'] and os.path.abspath(os.path.expanduser(config['init_from']))
  return config | {
    'optimizer': config['optimizer'] | {'decay_steps': decay_steps},
    'data': given | places,
    'init_from': initial,
  }


def absolute(source):
  """'text:book.txt' -> 'text:/home/me/book.txt', since a run is resumed from anywhere."""
  kind, _, place = (source or '').partition(':')
  if not place or kind in ('bundled', 'tfds', 'synthetic', 'environment', 'gymnax'):
    return source
  return f'{kind}:{os.path.abspath(os.path.expanduser(place))}'


def prepare(config, folder=None):
  """The Experiment of a resolved config.

  Args:
    config: resolved.
    folder: the run.Run that it goes on in, or None. Its tokenizer is used, its data has to be the same, and once it
      has a checkpoint, what `init_from` names may be gone.
  """
  config = fill_in(config)
  models.check(config['model'])
  resumes = folder is not None and has_begun(folder)
  step.check_rows(config)
  devices = mesh.choose_devices(config, fewer=folder is not None)
  initial = None if resumes else initials.find(config['init_from'])
  tasks.check(config)
  dataset = data.load(config['data'], find_tokenizer(config, folder, initial), tasks.form_of(config))
  if folder is not None:
    check_same_data(folder, dataset)
  config = tasks.complete(config, dataset)
  attention.settled(config, dataset.example(), devices)
  task = tasks.build(attention.portable(config))
  step.check(config, task)
  step.check_calls(config, len(dataset.shapes()) if dataset.shapes else 1)
  check_by_shapes(config, dataset, task, initial)
  return Experiment(config, dataset, task, devices)


def has_begun(folder):
  return checkpoint.latest(folder.path / 'checkpoints') is not None


def find_tokenizer(config, folder, initial):
  """The tokenizer that a run must go on with: its own, or that of the run it starts from; None: it makes one."""
  form = tasks.form_of(config)
  named = 'tokenizer' in data.FORMS[form].kept
  if folder is not None and ((named and has_begun(folder)) or (folder.path / TOKENIZER).exists()):
    return tokenizers.load(folder.path / TOKENIZER)
  if initial is None or not named or initial.tokenizer is None:
    return image_tokenizer(config['data']['source']) if form == 'image_tokens' else None
  check_initial_tokenizer(config, initial, form)
  return initial.tokenizer


def check_initial_tokenizer(config, initial, form):
  """Raises UsageError where the run to start from learned other symbols than the config asks for."""
  found, source = initial.tokenizer, config['data']['source']
  images = found.name == image_codes.NAME
  if images != (form == 'image_tokens'):
    what = 'codes of images' if images else 'text'
    raise UsageError(
      f'config.init_from: {initial.path} was trained on {what}, and config.data.source is {source!r}; '
      'start from a run on data of the same kind'
    )
  if images:
    there = os.path.isdir(source.partition(':')[2])  # it may be gone
    if there and image_tokenizer(source).sha256 != found.sha256:
      raise UsageError(
        f'config.init_from: {initial.path} was trained on the codes of another autoencoder than {source!r}; '
        'use the same, or leave init_from unset'
      )
    return
  if found.name != (wanted := config['data']['tokenizer']):
    raise UsageError(
      f'config.data.tokenizer: {wanted!r}, but {initial.path}, which config.init_from names, has {found.name!r}; '
      f'use --config.data.tokenizer={found.name}'
    )


def image_tokenizer(source):
  """The tokenizer that the run of 'run:PATH', a vector-quantized autoencoder, makes. Raises UsageError."""
  try:
    found = run.open_run(source.partition(':')[2])
  except UsageError as error:
    raise UsageError(f'config.data.source: {error}') from None
  config, checkpoints = found.config, found.path / 'checkpoints'
  if config['model']['name'] != 'vq_autoencoder' or not checkpoint.steps(checkpoints):
    what = (
      f'its model is {config["model"]["name"]!r}' if checkpoint.steps(checkpoints) else 'it has no checkpoint'
    )
    raise UsageError(
      f'config.data.source: {found.path} has no codes of images, since {what}; give the run of a vq_autoencoder, '
      'such as `aigc train --config=configs/autoencoder.py:vq` makes'
    )
  _, params, fields = checkpoint.restore_params(checkpoints, 'best', initials.kept_field(config), ('extra',))
  params, facts = jax.device_get(params), files.read_json(found.path / FACTS)
  codes = fields['extra']['codes'] if 'codes' in fields.get('extra', {}) else params.pop('codebook')
  return image_codes.make_tokenizer(config, facts['class_names'], params, codes)


def check_by_shapes(config, dataset, task, initial):
  """Raises UsageError where `freeze` leaves nothing to do, a metric is not there, or `initial` has other parameters."""
  training = config['training']
  if training['patience'] is not None and training['evaluate_every'] is None:
    raise UsageError(
      'config.training.patience: counts evaluations, so it needs config.training.evaluate_every'
    )
  by_metric = training['best_metric'] != 'validation/loss' or task.evaluate is not None
  adapted = config['lora']['rank'] is not None
  if training['freeze'] is None and not by_metric and initial is None and not adapted:
    return
  program, floats, batch = step.make_program(config, tasks.build), floats_of(config), dataset.example()
  state = jax.eval_shape(program.init, floats, jax.eval_shape(jax.random.key, 0), batch)
  params = step.merge_frozen(state.params, state.frozen)
  if training['freeze'] is not None:
    check_freeze(training['freeze'], state, params)
  if by_metric:
    check_metric(training['best_metric'], metric_names(program, floats, state, dataset, task))
  if initial is not None:
    initials.check(initial, params)
    initials.check_new(initial, params, state.frozen, config)


def check_freeze(pattern, state, params):
  if all(map(jax.tree.leaves, (state.params, state.frozen))):
    return
  matched = 'no parameter' if jax.tree.leaves(state.params) else 'all parameters'
  there = listed(list(checkpoint.flat(params))[:4])
  raise UsageError(f'config.training.freeze: {pattern!r} matches {matched}; there are {there} ...')


def metric_names(program, floats, state, dataset, task):
  """['validation/NAME'] that an evaluation gives, by shapes alone: nothing is compiled."""
  metrics, _ = jax.eval_shape(program.evaluate, floats, state, next(dataset.validation_batches()))
  ones = {name: np.ones(total.shape) for name, (total, _) in metrics.items()}
  return [f'validation/{name}' for name in task.report(ones)]


def check_metric(wanted, names):
  if wanted not in names:
    there = f'{nearest(wanted, names)}there are {listed(names)}'
    raise UsageError(f'config.training.best_metric: {wanted!r} is not known; {there}')


def check_same_data(folder, dataset):
  """Raises DataError where the data is not what the run began with."""
  path, facts = folder.path / FACTS, dataset.facts
  before = files.read_json(path) if path.exists() or has_begun(folder) else facts
  if 'imported' in before:  # it was trained on other data, elsewhere
    return
  changed = [key for key in facts if 'sha256' in key and before.get(key) != facts[key]]
  if changed:
    raise DataError(
      f'{facts["source"]}: is not what {folder.path} was trained on ({changed[0]} was {before.get(changed[0])}'
      f' and is {facts[changed[0]]}); put the old data back, or start a new run'
    )


def notes_on(config):
  """Lines for people on what the config asks for and does not get."""
  return [
    f'note: config.optimizer.{name} does nothing {why}' for name, why in optimizer.unused(config['optimizer'])
  ]
