"""The studies that come with the project: each loads, its configs resolve, and its recipes are those of its peers."""

import math
import pathlib

import jax
import numpy as np
import pytest

from aigc_jax import api, cli, data, run, tasks
from aigc_jax.studies import page, reproduce
from aigc_jax.studies import study as studies

ROOT = pathlib.Path(__file__).parents[2]
FILES = sorted(path.name for path in (ROOT / 'experiments').glob('*.py'))
PEERS = {  # {file: {arm: family of benchmarks/family_quality.py}}
  'autoencoders.py': {
    'plain': 'ae',
    'variational': 'vae_bound',
    'beta = 4': 'beta_vae',
    'codes': 'vq',
    'variational, all images': 'vae_bound',
  },
  'classifiers.py': {name: name for name in ('mlp', 'cnn', 'resnet')},
}


@pytest.fixture(autouse=True)
def inside(monkeypatch):
  monkeypatch.chdir(ROOT)


def test_there_are_studies():
  assert {'char_lm.py', 'autoencoders.py', 'classifiers.py', 'sequences.py', 'translation.py'} <= set(FILES)


@pytest.mark.parametrize('name', FILES)
def test_configs_resolve(name, tmp_path):
  study = studies.load(f'experiments/{name}')
  for each in (study, studies.shortened(study)):
    plans = [reproduce.planned(arm._replace(needs=''), tmp_path / 'new') for arm in each.arms]
    assert [len(plan.trials) for plan in plans] == [len(arm.seeds) for arm in each.arms]
  assert all(plan.trials[0].config['training']['steps'] <= 1000 for plan in plans)  # the short ones
  assert any(measure.references for arm in study.arms for measure in arm.measures)
  assert study.minutes
  assert study.about
  assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('name', FILES)
def test_pages_are_of_the_studies_as_they_are(name):
  """A page that was made shows each arm, measure and source that its study has now."""
  made = ROOT / 'docs' / 'studies' / name.replace('.py', '.md')
  if not made.exists():
    pytest.skip('was not run in full')
  text, study = made.read_text(encoding='utf-8'), studies.load(f'experiments/{name}')
  rows = [line for line in text.splitlines() if line.startswith('| ')][1:]
  assert len(rows) == sum(max(1, len(each.references)) for arm in study.arms for each in arm.measures)
  for arm in study.arms:
    for measure in arm.measures:
      start = f'| {page.escaped(arm.name)} | {page.escaped(measure.name)} | '
      for reference in measure.references:
        tolerance = page.tolerance_of(reference, measure.digits)
        assert any(
          row.startswith(start) and page.escaped(reference.source) in row and tolerance in row for row in rows
        )


@pytest.mark.parametrize(('name', 'arm'), [(name, arm) for name, arms in PEERS.items() for arm in arms])
def test_recipes_are_those_of_the_peers(name, arm, monkeypatch):
  """What PyTorch's figures were made with: the same task, model, data and optimizer."""
  monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
  import families

  (found,) = [each for each in studies.load(f'experiments/{name}').arms if each.name == arm]
  family = families.FAMILIES[PEERS[name][arm]]
  ours = api.read_config(found.config, found.overrides)
  peers = api.read_config(family.sections | {'optimizer': families.ADAM, 'training': {'steps': family.steps}})
  differences = {row.key for row in run.diff_configs(ours, peers)} - {
    *(f'training.{key}' for key in ('evaluate_every', 'checkpoint_every', 'sample_every', 'best_metric')),
    'task.importance_samples',  # of evaluations alone
  }
  on_all = {'data.source', 'training.steps'} if arm == 'variational, all images' else set()
  assert differences == on_all


@pytest.mark.parametrize('name', ['ae', 'vae', 'vq', 'mlp', 'cnn', 'resnet'])
def test_peers_have_as_many_parameters(name, monkeypatch):
  monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
  import families

  family = families.FAMILIES[name]
  config = api.read_config(family.sections)
  facts = {'image_shape': [28, 28, 1], 'classes': 10, 'class_names': list('0123456789')}
  config = tasks.complete(config, data.Dataset(None, None, None, 0, facts))
  batch = {'images': np.zeros((8, 28, 28, 1), np.uint8), 'labels': np.zeros(8, np.int32), 'mask': np.ones(8)}
  params, _ = jax.eval_shape(tasks.build(config).init, jax.eval_shape(jax.random.key, 0), batch)
  ours = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
  assert ours == sum(parameter.numel() for parameter in family.peer().parameters())


def test_the_command_is_told_of():
  assert 'aigc reproduce experiments/char_lm.py' in cli.DESCRIPTION
