"""A run -> a folder that Hugging Face's libraries read: config.json, model.safetensors and tokenizer files."""

import json
import os
import pathlib

import jax
import numpy as np

from aigc_jax import files
from aigc_jax.errors import UsageError, listed
from aigc_jax.importing import ORIGIN
from aigc_jax.interop import checkpoints, folders, settings, tables
from aigc_jax.interop.tokenizer_files import tokenizer_files
from aigc_jax.models import blocks
from aigc_jax.safetensors_file import Entry, Writer
from aigc_jax.training.state_leaves import flat

# what all these architectures have; those of one are Architecture.fixed
PLAIN = {
  'norm_position': 'pre',
  'query_key_norm': False,
  'window': None,
  'scale_embeddings': False,
  'logit_cap': None,
  'bidirectional_prefix': False,
}
ONE_HEAD_EACH = {'key_value_heads': None, 'head_width': None}


def export(run, folder):
  """Writes the model of a TrainedRun into a new or empty folder. Returns the names of the files.

  Raises UsageError for a model that no architecture has a place for, StorageError where it cannot be written.
  """
  folder = pathlib.Path(folder)
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UsageError(f'{folder}: is not empty; export into a new folder')
  origin = origin_of(run.path)
  model = run.config['model']
  kind = origin['config']['model_type'] if origin else kind_for(model)
  config, dtypes = config_of(kind, run, origin.get('config', {})), origin.get('dtypes', {})
  context, template = model.get('context_length'), run.config['data'].get('source_template')
  texts = {folders.CONFIG: config} | tokenizer_files(run.tokenizer, context, template)
  params = {path: np.asarray(leaf) for path, leaf in flat(jax.device_get(run.params)).items()}
  table = tables.TABLES[kind]
  rows = checkpoints.rows_of(table, model['name'], params)
  bare = model['name'] == 'transformer_encoder' and not model['head_transform']
  name = lambda row: row.name.removeprefix(table.prefix) if bare else row.name
  entries = {name(row): Entry(dtypes.get(row.name, 'F32'), checkpoints.shape_in(row, params)) for row in rows}
  with files.storage_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
  for file, content in texts.items():
    text = content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False) + '\n'
    files.write_atomically(folder / file, text)
  with Writer(folder / folders.WEIGHTS, entries) as file:
    for row in rows:
      file.put(name(row), checkpoints.views(row, params))
  return [*texts, folders.WEIGHTS]


def origin_of(path):
  """What the import kept of a run's origin; {} for a run that was trained here."""
  path = os.path.join(path, ORIGIN)
  return files.read_json(path) if os.path.exists(path) else {}


def kind_for(model):
  """The `model_type` that a complete `config.model` can be. Raises UsageError that names what is in the way."""
  kinds = [kind for kind, known in settings.ARCHITECTURES.items() if model['name'] in known.classes.values()]
  refusals = {kind: refusal(kind, model) for kind in kinds}
  fitting = [kind for kind, why in refusals.items() if why is None]
  if fitting:
    return fitting[0]
  if not kinds:
    raise UsageError(
      f'config.model.name: {model["name"]!r} is no architecture of Hugging Face that is written here; those are '
      f'{listed(settings.ARCHITECTURES)}'
    )
  # of several, the one whose positions it has
  kinds.sort(key=lambda kind: settings.ARCHITECTURES[kind].fixed['positions'] != model['positions'])
  raise UsageError(refusals[kinds[0]])


def refusal(kind, model):
  """Why a model is none of an architecture, or None."""
  known, model = settings.ARCHITECTURES[kind], effective(model)
  wanted = PLAIN | known.fixed
  if kind not in ('llama', 'qwen2'):
    wanted |= {'key_value_heads': model['heads'], 'head_width': model['width'] // model['heads']}
    wanted |= {'query_key_value_bias': True, 'mlp_bias': True}
  else:
    wanted = (
      {'query_key_value_bias': model['bias']} | wanted | ({} if kind == 'llama' else {'mlp_bias': False})
    )
  if kind == 'roberta' and model.get('head_transform'):
    wanted['activation'] = 'gelu'
  if kind in ('bert', 'roberta'):
    wanted |= {'unused_positions': 0} if kind == 'bert' else {}
    wanted |= {'pooling': 'first', 'token_types': model.get('token_types') or 1}
  if known.activation and model['activation'] not in settings.ACTIVATIONS.values():
    wanted['activation'] = 'gelu'
  for name, value in wanted.items():
    if name in model and model[name] != value:
      return f'config.model.{name}: {model[name]!r} cannot be exported, for a {kind} model has {value!r}'
  if kind == 'roberta' and not model['unused_positions']:
    return 'config.model.unused_positions: 0 cannot be exported, for a roberta model has 1 or more'
  return None


def effective(model):
  """A complete `config.model` with what its empty fields stand for."""
  filled = {
    'key_value_heads': model.get('key_value_heads') or model['heads'],
    'head_width': model.get('head_width') or model['width'] // model['heads'],
    'mlp_width': model['mlp_width'] or blocks.default_mlp_width(model['width'], model['activation']),
  }
  for name in ('query_key_value_bias', 'mlp_bias'):
    filled[name] = model['bias'] if model.get(name) is None else model[name]
  return model | filled


def config_of(kind, run, origin):
  """The content of config.json; `origin`: what it was where the model was imported, whose other fields stay."""
  model, known = run.config['model'], settings.ARCHITECTURES[kind]
  if (why := refusal(kind, model)) is not None:
    raise UsageError(why)
  full = effective(model)
  config = (
    {'model_type': kind, 'architectures': [class_of(kind, model)], 'dtype': 'float32'} | ends(run) | origin
  )
  for theirs, (ours, default) in known.fields.items():
    if ours not in full:
      continue
    if model.get(ours) is None and origin.get(theirs, default) is None:
      continue  # as they fill it in themselves
    config[theirs] = full[ours]
  if known.activation:
    activation = next(theirs for theirs, ours in settings.ACTIVATIONS.items() if ours == model['activation'])
    if settings.ACTIVATIONS.get(config.get(known.activation)) != model['activation']:
      config[known.activation] = activation
  if model['positions'] == 'rotary':
    config |= rotary(model, origin)
  if kind in ('bert', 'roberta'):
    config |= encoder(model, run, origin)
  return config


def class_of(kind, model):
  """The class of transformers that has all of a model's parameters."""
  classes = settings.ARCHITECTURES[kind].classes
  if model['name'] == 'transformer_encoder' and not model['head_transform']:
    return next(name for name in classes if name.endswith('Model'))
  return next(name for name, ours in classes.items() if ours == model['name'])


def ends(run):
  """The special tokens that config.json names."""
  known = run.tokenizer
  if known is None:
    return {}
  found = {'eos_token_id': known.end_of_text, 'bos_token_id': (known.prefix or (known.end_of_text,))[0]}
  return {name: token for name, token in found.items() if token is not None}


def rotary(model, origin):
  """`rope_parameters`, or `rope_theta` and `rope_scaling` where the config had these."""
  given = {'rope_theta': model['rotary_base'], 'rope_type': model['rotary_scaling'] or 'default'}
  for theirs, (ours, default) in settings.ROTARY.get(model['rotary_scaling'], {}).items():
    if model[ours] != default:
      given[theirs] = model[ours]
  if 'rope_parameters' in origin or 'rope_theta' not in origin:
    return {'rope_parameters': (origin.get('rope_parameters') or {}) | given}
  theta, scaling = given.pop('rope_theta'), origin.get('rope_scaling')
  return {'rope_theta': theta} | ({'rope_scaling': scaling | given} if scaling else {})


def encoder(model, run, origin):
  unused = model['unused_positions']
  config = {'max_position_embeddings': model['context_length'] + unused}
  config['type_vocab_size'] = model['token_types'] or 1
  if model['name'] == 'transformer_classifier':
    names, unnamed = run.facts['class_names'], [f'LABEL_{i}' for i in range(model['classes'])]
    if names != unnamed or model['classes'] != 2 or 'id2label' in origin:
      config['id2label'] = {str(i): name for i, name in enumerate(names)}
      config['label2id'] = {name: i for i, name in enumerate(names)}
  else:
    config['tie_word_embeddings'] = origin.get('tie_word_embeddings', True)
    if model['head_transform']:
      config['tie_word_embeddings'] = model['tie_embeddings']
  if unused:
    config['pad_token_id'] = unused - 1
  return config
