"""Every family's run goes on as if nothing had happened: what it keeps without gradients is restored whole."""

import numpy as np
import pytest

from aigc_jax import api
from aigc_jax.training import checkpoint, experiment, state_leaves
from aigc_jax.training.loop import loop
from tests import kill_and_resume, tiny, tiny_images

pytestmark = pytest.mark.usefixtures('cached_programs')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
  return tiny_images.write_images(tmp_path_factory.mktemp('images') / 'images.npz')


def recurrent(source):
  """A state that is carried on for 6 steps, then dropped."""
  model = {'name': 'rnn', 'width': 8}
  return tiny.config(source, task={'carry_state': True}, data={'packing': 'contiguous', 'batch_size': 32}) | {
    'model': model
  }


def masked(source):
  """Tokens to hide are drawn anew in each step."""
  model = {'name': 'transformer_encoder', 'layers': 1, 'heads': 2, 'width': 16}
  return tiny.config(source) | {'task': {'name': 'masked_language'}, 'model': model}


def translation(source):
  """Two shapes of batches, dropout."""
  model = {'name': 'transformer_encoder_decoder', 'layers': 1, 'heads': 2, 'width': 16, 'dropout': 0.1}
  pairs = {'source': 'bundled:en_zh', 'tokenizer': 'characters', 'batch_size': 8, 'buckets': 2}
  lengths = {'source_length': 24, 'target_length': 16}
  return tiny.config(source) | {'task': {'name': 'translation'}, 'model': model, 'data': pairs | lengths}


def acting(source):
  """Worlds, what was seen of them, its priorities and a target network."""
  config = tiny.config(source)
  task = {
    'name': 'q_learning',
    'replay_size': 64,
    'learning_starts': 16,
    'priority_exponent': 0.6,
    'target_every': 3,
  }
  data = {'source': 'environment:cartpole', 'environments': 4, 'batch_size': 8, 'validation_episodes': 4}
  return config | {'task': task, 'model': {'name': 'q_network', 'widths': (16,)}, 'data': data}


class Killed(Exception):
  """The process is gone."""


def train_until_killed(step, config, folder):
  """Nothing more is done once that step is under way."""

  def cut(step_function, state, batch_at, *rest):
    def batch(number):
      if number == step:
        raise Killed
      return batch_at(number)

    return loop(step_function, state, batch, *rest)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(experiment, 'loop', cut)
    with pytest.raises(Killed):
      tiny.train(config, folder)


def extra_of(run, step):
  """{path: array} of what a checkpoint keeps without gradients."""
  _, fields = checkpoint.restore_fields(run / 'checkpoints', ('extra',), step)
  return state_leaves.host_copies(checkpoint.flat(fields))


TEXT = {'rnn': recurrent, 'masked': masked, 'translation': translation, 'q_learning': acting}
FAMILIES = {
  'rnn': ('extra/carry/0/0', {}),
  'masked': (None, {}),
  'translation': (None, {}),
  'q_learning': ('extra/replay/seen/observation', {}),
  'resnet': ('extra/batch_stats/final_norm/mean', {'task': {'flip': True, 'crop': 1}}),
  'contrastive': ('extra/batch_stats/final_norm/mean', {}),
  'masked_images': (None, {}),
  'vq': ('extra/codes', {}),
  'vae': (None, {'data': {'binarization': 'dynamic'}}),
}


@pytest.mark.parametrize(
  'family',
  [
    name if name in ('rnn', 'q_learning') else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
  ],
)
def test_a_run_killed_and_resumed_ends_where_the_unbroken_one_ends(family, source, images, tmp_path):
  kept, sections = FAMILIES[family]
  config = TEXT[family](source) if family in TEXT else tiny_images.config(images, family, **sections)
  unbroken = tiny.train(config, tmp_path / 'unbroken')
  train_until_killed(7, config, tmp_path / 'broken')
  assert checkpoint.steps(tmp_path / 'broken/checkpoints') == [4]
  assert kill_and_resume.last_step(tmp_path / 'broken') == 5, 'lines of steps that are taken once more'
  resumed = api.resume(tmp_path / 'broken', quiet=True)
  assert kill_and_resume.differences(resumed.path, unbroken.path) == []
  if kept:
    before, after = (extra_of(unbroken.path, step)[kept] for step in (4, 12))
    assert (before != after).any(), 'it changes, so it must have been restored'
    assert np.abs(after).max() > 0
