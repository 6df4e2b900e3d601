"""Configs: what is typed becomes a checked value of the field's type, or one line that names the nearest right one."""

import dataclasses
import json
import math
import os
import pathlib
from typing import Annotated, Literal

import ml_collections
import numpy as np
import pytest
from ml_collections import config_dict
from ml_collections.config_dict import RequiredValueError

from aigc_jax import schemas
from aigc_jax.config import (
  Fraction,
  NonNegative,
  Positive,
  Schemas,
  as_dict,
  floats_of,
  from_json,
  override,
  resolve,
  to_json,
  with_floats,
)
from aigc_jax.config_files import load_file
from aigc_jax.data.pipeline import TextData
from aigc_jax.errors import UsageError

CONFIGS = pathlib.Path(__file__).parents[1] / 'configs'


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  temperature: Annotated[float, Positive] = 1.0
  prompt: str = ''


@dataclasses.dataclass(frozen=True)
class OtherTask:
  beta: float = 0.5


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  vocabulary_size: Annotated[int, Positive]  # decided by the data
  width: Annotated[int, Positive] = 8
  dropout: Annotated[float | None, Fraction] = None
  bias: bool = True
  sizes: tuple[int, ...] = (1, 2)
  activation: Literal['gelu', 'relu'] = 'gelu'


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  learning_rate: Annotated[float, NonNegative] = 1e-3
  clip_norm: Annotated[float | None, Positive] = None
  warmup_steps: Annotated[int, NonNegative] = 0


SCHEMAS = Schemas(
  {'toy': TaskConfig, 'other': OtherTask},
  {'net': ModelConfig},
  OptimizerConfig,
  lambda task, source: TextData,
)
SMALL = {'task': {'name': 'toy'}, 'model': {'name': 'net'}}


def resolved(*overrides, config=SMALL):
  return resolve(override(config, overrides, SCHEMAS), SCHEMAS)


def message(*overrides, config=SMALL):
  with pytest.raises(UsageError) as error:
    resolved(*overrides, config=config)
  text = str(error.value)
  assert '\n' not in text
  assert error.value.status == 64
  return text


def test_defaults_are_filled_in_and_complete():
  config = resolved()
  assert config['model'] == {
    'name': 'net', 'vocabulary_size': None, 'width': 8, 'dropout': None, 'bias': True, 'sizes': [1, 2],
    'activation': 'gelu',
  }  # fmt: skip
  assert config['optimizer'] == {'learning_rate': 1e-3, 'clip_norm': None, 'warmup_steps': 0}
  assert config['data']['source'] == 'bundled:moby_dick'
  assert (config['seed'], config['init_from']) == (0, '')
  assert resolve(config, SCHEMAS) == config
  assert set(SMALL) == {'task', 'model'}, 'the config given is left as it was'


@pytest.mark.parametrize(
  ('key', 'text', 'value'),
  [
    ('optimizer.warmup_steps', '2e3', 2000),
    ('optimizer.warmup_steps', '7', 7),
    ('optimizer.learning_rate', '3e-4', 3e-4),
    ('optimizer.learning_rate', '0', 0.0),
    ('optimizer.clip_norm', 'none', None),
    ('optimizer.clip_norm', 'None', None),
    ('optimizer.clip_norm', '1', 1.0),
    ('model.dropout', '0.1', 0.1),
    ('model.bias', 'false', False),
    ('model.bias', 'True', True),
    ('model.bias', '0', False),
    ('model.sizes', '3,4', [3, 4]),
    ('model.sizes', '(3, 4)', [3, 4]),
    ('model.sizes', '[3]', [3]),
    ('model.activation', 'relu', 'relu'),
    ('task.prompt', 'none', 'none'),  # a text that is not optional
    ('task.prompt', '1e3', '1e3'),
    ('task.prompt', 'a=b', 'a=b'),
    ('data.seed', '-1', -1),
    ('data.seed', str(2**53 + 1), 2**53 + 1),  # not through a float
    ('training.evaluate_every', 'none', None),
    ('seed', '5', 5),
    ('init_from', 'runs/a', 'runs/a'),
  ],
)
def test_text_becomes_a_value_of_the_fields_type(key, text, value):
  config = resolved((key, text))
  section, _, name = key.rpartition('.')
  found = config[section][name] if section else config[name]
  assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
  ('key', 'value', 'expected'),
  [
    ('optimizer.learning_rat', '1', "did you mean 'optimizer.learning_rate'?"),
    ('optimiser.learning_rate', '1', "did you mean 'optimizer.learning_rate'?"),
    ('learning_rate', '1', "did you mean 'optimizer.learning_rate'?"),
    ('sed', '1', "did you mean 'seed'?"),
    ('qqqqq', '1', 'config.qqqqq: no such key'),
    ('', '1', 'no such key'),
    ('task', 'toy', 'no such key'),
    (
      'task.name',
      'toi',
      "config.task.name: 'toi' is not known; did you mean 'toy'? the tasks are toy, other",
    ),
    ('model.name', 'nett', "did you mean 'net'?"),
    ('model.activation', 'gelo', "did you mean 'gelu'? it takes one of gelu, relu"),
    ('optimizer.learning_rate', 'nan', 'is not a finite number; it takes a float 0 or above'),
    ('optimizer.learning_rate', 'inf', 'is not a finite number'),
    ('optimizer.learning_rate', '-1e-3', '-0.001 is out of range; it takes a float 0 or above'),
    ('optimizer.learning_rate', '1e-3x', "'1e-3x' is not a float"),
    ('optimizer.learning_rate', 'none', "'none' is not a float; it takes a float 0 or above"),
    ('optimizer.clip_norm', '0', 'is out of range; it takes a float above 0, or none'),
    ('optimizer.warmup_steps', '1.5', "'1.5' is not an int"),
    ('optimizer.warmup_steps', 'inf', 'is not an int'),
    ('optimizer.warmup_steps', 'nan', 'is not an int'),
    ('optimizer.warmup_steps', '-1', 'out of range; it takes an int 0 or above'),
    ('model.dropout', '1', 'out of range; it takes a float in [0, 1), or none'),
    ('model.bias', 'maybe', 'is not true or false'),
    ('model.sizes', '1,x', "config.model.sizes: '1,x' is not a sequence; it takes a list of ints"),
    ('model.width', None, 'config.model.width: None is not allowed; it takes an int above 0'),
    ('model.width', True, 'True is not an int'),
    ('model.width', 8.0, '8.0 is not an int'),
    ('model.bias', 1, '1 is not true or false'),
    ('task.prompt', 3, '3 is not a text'),
    ('training.steps', '0', 'it takes an int above 0'),
    ('data.validation_fraction', '1', 'it takes a float in (0, 1)'),
  ],
)
def test_what_is_wrong_is_said_in_one_line(key, value, expected):
  assert expected in message((key, value))


@pytest.mark.parametrize(
  'config',
  [
    {'task': 'toy', 'model': {'name': 'net'}},
    {'task': {'name': 'toy'}, 'model': {'name': 'net'}, 'data': 3},
    {'task': {'name': 'toy'}, 'model': {'name': 'net'}, 'dat': {'source': 'x'}},
    {'task': {'name': 'toy'}, 'model': {'name': 'net'}, 'data': {'surce': 'x'}},
    {'task': {'name': 'toy'}, 'model': {'name': ['net']}},
    {'task': {'name': 'toy'}, 'model': {}},
    {'task': {'name': 'toy'}},
    {},
  ],
)
def test_a_misshapen_config_is_one_line_too(config):
  assert 'config' in message(config=config)


def test_a_source_that_is_no_text_is_one_line():
  config = {'task': {'name': 'language'}, 'model': {'name': 'rnn'}, 'data': {'source': 5}}
  with pytest.raises(UsageError, match=r'^config.data.source: 5 is not a text; it takes a text$'):
    schemas.read_config(config)


def test_names_decide_which_keys_there_are_whatever_the_order():
  config = resolved(('task.beta', '0.25'), ('task.name', 'other'))
  assert config['task'] == {'name': 'other', 'beta': 0.25}
  assert 'config.task.temperature: no such key' in message(('task.temperature', '2'), ('task.name', 'other'))


def test_the_last_of_equal_overrides_counts():
  assert resolved(('seed', '1'), ('seed', '2'))['seed'] == 2


def test_config_dict_placeholders_and_references():
  config = ml_collections.ConfigDict(SMALL)
  config.optimizer = dict(clip_norm=config_dict.placeholder(float), learning_rate=1)
  config.training = dict(steps=30)
  config.model.width = config.training.get_ref('steps')
  config.optimizer.warmup_steps = config.training.get_ref('steps') // 10
  config.training.steps = 50
  assert all(type(section) is dict for section in as_dict(config).values())
  found = resolve(config, SCHEMAS)
  assert found['optimizer'] == {'learning_rate': 1.0, 'clip_norm': None, 'warmup_steps': 5}
  assert type(found['optimizer']['learning_rate']) is float
  assert found['model']['width'] == 50, 'what is referred to, as it is when resolved'
  assert resolved(('optimizer.clip_norm', '2'), config=as_dict(config))['optimizer']['clip_norm'] == 2.0
  config.optimizer.clip_norm = 0.5
  assert resolve(config, SCHEMAS)['optimizer']['clip_norm'] == 0.5


def test_json_round_trip_is_exact():
  config = resolved(('optimizer.learning_rate', '0.1'), ('task.prompt', '鲸 "\n'), ('seed', str(2**60)))
  assert from_json(to_json(config)) == config
  assert '鲸' in to_json(config)
  assert resolve(from_json(to_json(config)), SCHEMAS) == config
  assert json.loads(to_json(config))['optimizer']['learning_rate'] == 0.1


def test_floats_go_out_and_in():
  config = resolved(('model.dropout', '0.25'))
  floats = floats_of(config)
  assert floats == {'task.temperature': 1.0, 'model.dropout': 0.25, 'optimizer.learning_rate': 1e-3}
  arrays = {key: np.float32(value) * 2 for key, value in floats.items()}
  filled = with_floats(config, arrays)
  assert filled['model']['dropout'] is arrays['model.dropout']
  assert filled['optimizer']['learning_rate'] is arrays['optimizer.learning_rate']
  assert filled['optimizer']['clip_norm'] is None  # what is off is structure
  assert filled['data'] == config['data']  # floats that the host reads are structure
  assert config['model']['dropout'] == 0.25, 'the config given is left as it was'
  assert floats_of(with_floats(config, floats)) == floats


def variants(path):
  """'' and those that the file's own VARIANTS names."""
  names = {}
  exec(compile(path.read_text(encoding='utf-8'), str(path), 'exec'), names)
  return ['', *(v for v in names.get('VARIANTS', ()) if v)]


EVERY = [(path.name, variant) for path in sorted(CONFIGS.glob('*.py')) for variant in variants(path)]


@pytest.mark.parametrize(('name', 'variant'), EVERY)
def test_every_config_file_resolves_with_every_variant(name, variant):
  path = f'{CONFIGS / name}' + (f':{variant}' if variant else '')
  # what a run to start from would bring, which is not there
  model = [] if 'model' in load_file(path) else [('model.name', 'transformer')]
  config = schemas.read_config(path, model)
  assert all(math.isfinite(value) for value in floats_of(config).values())
  assert resolve(from_json(to_json(config)), schemas.schemas()) == config
  assert f'configs/{name}' in (CONFIGS / name).read_text(encoding='utf-8'), 'the docstring has the command'


def write(tmp_path, text):
  path = tmp_path / 'mine.py'
  path.write_text(text, encoding='utf-8')
  return str(path)


def test_what_is_wrong_with_a_config_file_is_one_line(tmp_path):
  def text_of(config):
    with pytest.raises(UsageError) as error:
      schemas.read_config(config)
    assert '\n' not in str(error.value)
    return str(error.value)

  there = write(tmp_path, 'def get_config():\n  return {}\n')
  assert "did you mean 'mine.py'?" in text_of(str(tmp_path / 'mime.py'))
  assert 'no such file' in text_of(str(tmp_path / 'nowhere' / 'x.py'))
  assert 'no such file' in text_of(str(tmp_path))
  assert 'config.task.name: None' in text_of(there)
  assert 'mine.py' in text_of(there + ':small')  # takes no variant
  assert 'has no function get_config()' in text_of(write(tmp_path, 'config = 1\n'))
  assert 'mine.py:2: ZeroDivisionError' in text_of(write(tmp_path, 'def get_config():\n  return 1 / 0\n'))
  assert 'mine.py' in text_of(write(tmp_path, 'def get_config(:\n'))  # a SyntaxError
  assert 'mine.py' in text_of(write(tmp_path, 'def get_config():\n  return 3\n'))
  assert 'no variant' in text_of(f'{CONFIGS / "transformer_lm.py"}:smal')


def test_a_config_file_is_found_from_anywhere(tmp_path, monkeypatch):
  there = write(tmp_path, 'def get_config(arg="a"):\n  return {"seed": arg}\n')
  monkeypatch.chdir(tmp_path)
  assert load_file('mine.py') == {'seed': 'a'}
  assert load_file('mine.py:b') == {'seed': 'b'}
  assert load_file(os.path.relpath(there)) == {'seed': 'a'}


def test_a_required_placeholder_that_nobody_fills_in_is_named():
  from aigc_jax import schemas

  config = config_dict.ConfigDict({'task': {'name': 'language'}, 'model': {'name': 'transformer'}})
  config.optimizer = {'clip_norm': config_dict.required_placeholder(float)}
  with pytest.raises(
    UsageError, match=r'^config.optimizer.clip_norm: must be given, by --config.optimizer.clip_norm='
  ):
    schemas.read_config(config)
  assert schemas.read_config(config, [('optimizer.clip_norm', '0.5')])['optimizer']['clip_norm'] == 0.5


def test_references_follow_what_the_command_line_overrides():
  from aigc_jax import schemas

  config = config_dict.ConfigDict({'task': {'name': 'language'}, 'model': {'name': 'transformer'}})
  config.data = {'sequence_length': config_dict.required_placeholder(int)}
  config.model.context_length = config.data.get_ref('sequence_length')
  found = schemas.read_config(config, [('data.sequence_length', '32'), ('optimizer.learning_rate', '1')])
  assert (found['model']['context_length'], found['optimizer']['learning_rate']) == (32, 1.0)
  with pytest.raises(RequiredValueError):
    config.data.sequence_length  # the caller's own is as it was  # noqa: B018
  frozen = config_dict.FrozenConfigDict({'task': {'name': 'language'}, 'model': {'name': 'transformer'}})
  assert schemas.read_config(frozen, [('model.layers', '2')])['model']['layers'] == 2
  config.model.name = config_dict.required_placeholder(str)
  with pytest.raises(UsageError, match=r'^config.model.name: must be given, by --config.model.name='):
    schemas.read_config(config)
