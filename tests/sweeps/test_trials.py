"""Trials have names by their configs, and those that one program runs are grouped."""

import pytest

from aigc_jax.errors import UsageError
from aigc_jax.sweeps import space, trials
from tests import tiny


def found(changes, overrides=(), **sections):
  return trials.trials_of(tiny.config('text:words.txt', **sections), space.parse(changes), overrides)


def test_names_tell_configs_apart_and_know_the_same_one_again():
  made = found('optimizer.learning_rate=1e-3,1e-2;seed=0..1')
  assert len({trial.name for trial in made}) == 4
  assert [trial.overrides for trial in made][1] == {'optimizer.learning_rate': 1e-3, 'seed': 1}
  again = found('seed=1;optimizer.learning_rate=0.001')
  assert again[0].name == made[1].name, 'whatever it was written as'
  assert found('seed=1', [('optimizer.learning_rate', '1e-3')])[0].name == made[1].name


def test_floats_and_seeds_are_lanes_and_all_else_is_structure():
  made = found('optimizer.learning_rate=1e-3,1e-2;seed=0..1;data.seed=0,1;model.layers=1,2')
  groups = trials.groups_of(made)
  assert [len(group) for group in groups] == [8, 8]
  assert [{trial.config['model']['layers'] for trial in group} for group in groups] == [{1}, {2}]
  # A feature that is off is not in the program.
  assert len(trials.groups_of(found('model.dropout=none,0.1,0.2'))) == 2
  assert len(trials.groups_of(found('training.steps=5,6'))) == 2
  assert trials.differing(made) == ['optimizer.learning_rate', 'seed', 'data.seed', 'model.layers']
  assert trials.differing(groups[0]) == ['optimizer.learning_rate', 'seed', 'data.seed']


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (
      'optimizer.learning_rat=1',
      "config.optimizer.learning_rat: no such key; did you mean 'optimizer.learning_rate",
    ),
    ('model.layers=1,two', "config.model.layers: 'two' is not an int"),
    ('optimizer.learning_rate=1e-3,0.001', 'the same trial twice: learning_rate=0.001'),
  ],
)
def test_what_is_refused(changes, words):
  with pytest.raises(UsageError) as error:
    found(changes)
  assert words in str(error.value)


def test_no_trials_are_refused():
  with pytest.raises(UsageError, match='has no trials'):
    trials.trials_of(tiny.config('text:words.txt'), [])


FILE = """
from aigc_jax.sweeps.space import product, sweep

def get_config(variant=''):
  return {}

def sweep_learning_rate():
  return product(sweep('optimizer.learning_rate', [1e-3, 1e-2]), sweep('seed', range(2)))

def sweep_wrong():
  return {'seed': 1}

def sweep_broken():
  return [][1]
"""


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'config.py'
  path.write_text(FILE, encoding='utf-8')
  return f'{path}:variant'


def test_a_config_file_has_sweeps_of_its_own(file):
  made = trials.space_of(file, 'learning_rate')
  names = lambda changes: [trial.name for trial in trials.trials_of(tiny.config('text:words.txt'), changes)]
  assert names(made) == names(trials.space_of(file, 'optimizer.learning_rate=0.001,0.01;seed=0..1'))


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('learning_rat', "config.py: has no function sweep_learning_rat(); did you mean 'sweep_learning_rate'?"),
    ('wrong', "config.py: sweep_wrong() returns {'seed': 1}; it takes a list of override dicts"),
    ('broken', 'config.py:14: IndexError'),
  ],
)
def test_a_sweep_that_is_not_there_or_is_none_is_refused(file, name, words):
  with pytest.raises(UsageError) as error:
    trials.space_of(file, name)
  assert words in str(error.value)
