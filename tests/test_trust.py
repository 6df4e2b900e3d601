"""Models and tasks of the user's own: imported where they are trusted, and then like ours."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import aigc_jax
from aigc_jax import cli, own_code
from aigc_jax.errors import UsageError
from aigc_jax.run import read_metrics
from aigc_jax.sweeping import find_trials
from tests import tiny, tiny_images

MINE = """
from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp
import optax

from aigc_jax import models
from aigc_jax.config import Positive
from aigc_jax.task import Task
from aigc_jax.tasks import own_kind
from aigc_jax.tasks.images import as_floats, gather

pathlib.Path('imported').touch()


class Perceptron(nn.Module):
  classes: Annotated[int, Positive]
  width: Annotated[int, Positive] = 8
  slope: float = 0.1
  kernel_init: Callable = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, images):
    x = nn.Dense(self.width, kernel_init=self.kernel_init)(images.reshape(len(images), -1))
    return nn.Dense(self.classes)(jnp.where(x > 0, x, self.slope * x))


def build(config):
  model = models.build(config['model'])

  def init(key, batch):
    return model.init(key, as_floats(gather(batch)['images'])[:1])['params'], {}

  def loss(params, extra, batch, context):
    logits = model.apply({'params': params}, as_floats(batch['images']))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch['labels']) * batch['mask']
    return nats.sum(), (batch['mask'].sum(), extra, {})

  return Task(init, loss, lambda params, extra, batch, context: (extra, gather(batch)))


class Bigrams(nn.Module):
  vocabulary_size: Annotated[int, Positive]

  def setup(self):
    self.table = nn.Embed(self.vocabulary_size, self.vocabulary_size)

  def __call__(self, tokens):
    return self.logits(self.hidden(tokens))

  def hidden(self, tokens, segments=None, train=False):
    return tokens

  def logits(self, tokens):
    return self.table(tokens)


class Deep(nn.Module):
  depth: int


class Table(nn.Module):
  entries: dict


KIND = own_kind(build, data=('images',))
NOTHING, INSTANCE = 3, Perceptron(3)
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
  """(config, name of the module): a folder that one works in, with a module that no test has imported yet."""
  name = f'mine_{os.path.basename(tmp_path)}'
  (tmp_path / f'{name}.py').write_text(MINE)
  source = tiny_images.write_images(tmp_path / 'images.npz')
  config = tiny_images.config(source, 'mlp') | {
    'task': {'name': f'{name}:KIND'},
    'model': {'name': f'{name}:Perceptron'},
    'optimizer': {'name': 'adamw', 'learning_rate': 1e-2, 'schedule': 'constant'},
  }
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  yield config, name
  sys.modules.pop(name, None)


def aigc(*arguments):
  """(status, standard error) of a process of its own."""
  found = subprocess.run(
    [sys.executable, '-m', 'aigc_jax.cli', *arguments],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': os.path.dirname(os.path.dirname(__file__))},
  )
  return found.returncode, found.stderr


def losses(folder):
  return [row['train/loss'] for row in read_metrics(folder) if 'train/loss' in row]


def test_nothing_is_imported_without_trust(mine, capsys):
  config, name = mine
  with pytest.raises(UsageError, match='add --trust') as caught:
    aigc_jax.train(config, 'run', quiet=True)
  assert '\n' not in str(caught.value)
  tiny.train(config, 'run', trust=True)
  os.remove('imported')
  sys.modules.pop(name)
  for verb in ('eval', 'resume', 'probe', 'card'):
    assert cli.main([verb, 'run']) == 64
    assert 'add --trust' in capsys.readouterr().err
  with pytest.raises(UsageError, match='add --trust'):
    aigc_jax.load_run('run')
  assert cli.main(['list', '.']) == 0
  assert cli.main(['diff', 'run', 'run']) == 0
  assert not os.path.exists('imported')
  assert name not in sys.modules


def test_own_code_trains_resumes_and_is_evaluated_like_ours(mine):
  config, _ = mine
  whole = tiny.train(config, 'whole', trust=True)
  assert losses('whole')[-1] < losses('whole')[0]
  tiny.train(config | {'training': config['training'] | {'steps': 8}}, 'parts')
  assert 'next: aigc eval whole --trust' in pathlib.Path('whole/log.txt').read_text()
  assert cli.main(['resume', 'parts', '--steps=12', '--trust']) == 0
  assert losses('parts') == losses('whole')
  assert aigc('eval', 'whole', '--trust')[0] == 0
  found = aigc_jax.load_run('whole', trust=True)
  assert found.config['model'] == {'name': config['model']['name'], 'classes': 3, 'width': 8, 'slope': 0.1}
  assert found.evaluate()['loss'] == pytest.approx(whole.metrics[-1]['validation/loss'], rel=1e-6)


def test_own_code_on_eight_devices_finds_what_one_finds(mine):
  config, _ = mine
  tiny.train(config, 'one', trust=True)
  tiny.train(config | {'parallel': {'data': 8}}, 'eight')
  np.testing.assert_allclose(losses('eight'), losses('one'), rtol=2e-6)  # sums in another order


def test_floats_of_an_own_model_are_lanes(mine):
  config, _ = mine
  folder = aigc_jax.sweep(
    config, [{'model.slope': 0.0}, {'model.slope': 0.3}], 'sweep', quiet=True, trust=True
  )
  groups = list((folder / 'groups').glob('*-2.log'))
  assert len(groups) == 1, 'one program for both trials'
  found = {}
  for trial in folder.glob('*/config.json'):
    slope = aigc_jax.load_run(trial.parent).config['model']['slope']
    found[slope] = losses(trial.parent)
  tiny.train(config | {'model': config['model'] | {'slope': 0.3}}, 'solo')
  np.testing.assert_allclose(found[0.3], losses('solo'), rtol=1e-5)
  assert found[0.0] != found[0.3]


def test_a_sweep_and_a_start_import_what_they_name_and_no_more(mine, tmp_path):
  """Of a sweep over models, and of a config that takes its model from a run."""
  config, name = mine
  (tmp_path / f'{name}_too.py').write_text(f'from {name} import Perceptron as Other\n')
  plain = config | {'task': {'name': f'{name}:KIND'}, 'model': {'name': 'mlp'}}
  space = [{'model.name': f'{name}:Perceptron'}, {'model.name': f'{name}_too:Other'}]
  with pytest.raises(UsageError, match='add --trust'):
    find_trials(plain, space, ())
  assert not os.path.exists('imported')
  assert [trial.config['model']['width'] for trial in find_trials(plain, space, (), trust=True)] == [8, 8]
  tiny.train(config | {'model': {'name': f'{name}_too:Other', 'width': 5}}, 'first')
  for module in (name, f'{name}_too'):
    sys.modules.pop(module)
  begun = config | {'init_from': 'first', 'model': {}, 'training': config['training'] | {'steps': 1}}
  with pytest.raises(UsageError, match=r'config\.init_from: first/config\.json: .*add --trust'):
    tiny.train(begun, 'second')
  assert tiny.train(begun, 'second', trust=True).config['model']['width'] == 5
  sys.modules.pop(f'{name}_too')


def test_a_card_says_whose_code_it_is_and_a_probe_how_it_calls_a_model(mine, capsys):
  config, name = mine
  run = tiny.train(config | {'training': config['training'] | {'steps': 1}}, 'run', trust=True)
  text = run.card().read_text()
  assert f'`{name}:Perceptron`, code of its author: classes 3, width 8, slope 0.1' in text
  assert "load_run('runs/run', trust=True)" in text
  assert 'aigc eval runs/run --trust' in text
  assert "train(config, 'runs/again', trust=True)" in text
  assert cli.main(['probe', 'run', 'activations']) == 64
  assert "Perceptron: got an unexpected keyword argument 'mask'" in capsys.readouterr().err


def test_an_own_model_learns_a_task_of_ours(mine, tmp_path):
  _, name = mine
  source = tiny.write_corpus(tmp_path / 'text.txt')
  config = tiny.config(source) | {'model': {'name': f'{name}:Bigrams'}}
  run = tiny.train(config, 'bigrams', trust=True)
  assert run.config['model']['vocabulary_size'] == run.tokenizer.vocabulary_size
  with pytest.raises(UsageError, match='writes no text'):
    run.generate('whale')
  with pytest.raises(UsageError, match="has no field vocabulary_size, which the task 'language' sets"):
    tiny.train(config | {'model': {'name': f'{name}:Perceptron', 'classes': 3}}, 'wrong')


@pytest.mark.parametrize(
  ('section', 'given', 'words'),
  [
    ('model', '{name}:Perceptrom', "did you mean 'Perceptron'"),
    ('model', '{name}:build', 'has to be a class of flax.linen.Module'),
    ('model', '{name}:INSTANCE', 'is of type Perceptron, and it has to be a class of flax.linen.Module'),
    ('model', 'os:system', 'has to be a class'),
    ('model', './{name}:Perceptron', 'is no module; own code is named as Python imports it'),
    (
      'model',
      '{name}:Deep',
      r'config.model.depth: must be given, by --config.model.depth=VALUE; it takes an int',
    ),
    ('model', '{name}:Table', r'Table.entries is annotated .*dict.*, and fields of a config are int, float'),
    ('task', 'aigc_jax.tasks:Kind', 'is of type type, and it has to be what'),
    ('task', 'exits:KIND', 'exits: cannot be imported at exits.py:2: SystemExit: 3'),
    (
      'task',
      'misspelt:KIND',
      "at misspelt.py:2: ValueError: data: 'image' is not known; did you mean 'images'",
    ),
    ('model', 'no_module_of_this_name:Model', 'cannot be imported.*No module named'),
    ('task', '{name}:NOTHING', 'has to be what aigc_jax.tasks.own_kind gives'),
    ('task', 'broken:KIND', r'broken: cannot be imported at broken.py:2: ZeroDivisionError'),
  ],
)
def test_what_is_wrong_is_one_line(mine, tmp_path, section, given, words):
  config, name = mine
  (tmp_path / 'broken.py').write_text('a = 1\nb = a / 0\n')
  (tmp_path / 'exits.py').write_text('import sys\nsys.exit(3)\n')
  (tmp_path / 'misspelt.py').write_text(
    "from aigc_jax import tasks\nKIND = tasks.own_kind(print, data='image')\n"
  )
  config = config | {section: {'name': given.format(name=name)}}
  with pytest.raises(UsageError, match=words) as caught:
    aigc_jax.train(config, 'run', quiet=True, trust=True)
  assert '\n' not in str(caught.value)
  assert not os.path.exists('run')


def test_fields_of_own_code_are_checked_as_ours_are(mine):
  config, _ = mine
  own_code.trust(own_code.modules_of(config))
  for fields, words in (
    ({'widht': 3}, 'did you mean .model.width'),
    ({'width': 0}, 'out of range'),
    ({'slope': 'steep'}, 'is not a float'),
  ):
    with pytest.raises(UsageError, match=words):
      aigc_jax.train(config | {'model': config['model'] | fields}, 'run', quiet=True)
