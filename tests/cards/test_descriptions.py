"""Whatever a task reports, a model is called or a score is named has words in the tables of the card."""

import jax
import numpy as np
import pytest

from aigc_jax import models, tasks
from aigc_jax.cards import descriptions
from aigc_jax.config import floats_of
from aigc_jax.evaluation import perplexity, scores
from aigc_jax.schemas import read_config
from aigc_jax.training import prepare, step
from tests import tiny, tiny_images
from tests.training.test_families import acting, masked, recurrent, translation

IMAGES = {
  'mlp': {},
  'vae': {'data': {'binarization': 'fixed'}, 'task': {'importance_samples': 2}},
  'vq': {},
  'contrastive': {},
  'masked_images': {},
}
TEXTS = {
  'transformer': tiny.config,
  'rnn': recurrent,
  'masked': masked,
  'translation': translation,
  'acting': acting,
}


@pytest.fixture(scope='module')
def sources(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  return tiny.write_corpus(folder / 'text.txt'), tiny_images.write_images(folder / 'images.npz')


def configs(sources):
  text, images = sources
  for family, sections in IMAGES.items():
    made = tiny_images.config(images, family)
    yield made | {name: made[name] | fields for name, fields in sections.items()}
  for make in TEXTS.values():
    yield make(text)
  table = acting(text)
  task = {name: value for name, value in table['task'].items() if name in ('name', 'replay_size')}
  data = table['data'] | {'source': 'environment:cliff_walking'}
  yield table | {'task': task, 'data': data, 'model': {'name': 'q_table'}}


def reported(config):
  """The names of all metrics of an evaluation; nothing is compiled."""
  made = prepare.prepare(read_config(config))
  program, floats, batch = step.make_program(made.config, tasks.build), floats_of(made.config), None
  batch = made.dataset.example()
  state = jax.eval_shape(program.init, floats, jax.eval_shape(jax.random.key, 0), batch)
  sums, _ = jax.eval_shape(program.evaluate, floats, state, next(made.dataset.validation_batches()))
  found = made.task.report({name: np.ones(total.shape) for name, (total, _) in sums.items()})
  return made.task, found


def test_every_metric_of_every_task_has_a_description(sources):
  seen, names = set(), set()
  for config in configs(sources):
    task, found = reported(config)
    seen.add(config['task']['name'])
    for name in found:
      told = descriptions.metric(name, config['task']['name'])
      names.add(name)
      assert len(told.text) > 10, name
      if name in task.higher_is_better and name != 'length':
        assert told.better == descriptions.HIGHER, name
      else:
        assert told.better != descriptions.HIGHER, name
  assert seen == set(tasks.KINDS)
  assert {*descriptions.METRICS} <= names, (
    'a description of what nothing reports, or a family is missing here'
  )
  assert {*descriptions.LOSSES} == {*descriptions.TASKS} == set(tasks.KINDS)
  with pytest.raises(KeyError):
    descriptions.metric('made_up', 'language')


def test_every_score_has_a_description():
  made = scores.score(list(scores.SCORES), ['a b'], ['a c']) + perplexity.perplexities(1.0, 2, 'a b')
  assert {score.name for score in made} == {*descriptions.SCORES}


def test_every_model_has_words():
  assert {*descriptions.MODELS} == set(models.SCHEMAS)
