"""A hidden state that goes on from batch to batch: in training, and through the validation split."""

import jax
import numpy as np
import pytest

from aigc_jax import api, models, tasks
from aigc_jax.config import floats_of
from aigc_jax.errors import UsageError
from aigc_jax.tasks import language
from aigc_jax.tasks.losses import softmax_cross_entropy
from aigc_jax.training import hooks, parallel, prepare
from tests import tiny

ROWS = 4


@pytest.fixture(scope='module')
def experiment(tmp_path_factory):
  source = tiny.write_corpus(tmp_path_factory.mktemp('corpus') / 'text.txt')
  sections = {'task': {'carry_state': True}, 'data': {'packing': 'contiguous', 'batch_size': ROWS}}
  config = tiny.config(source, **sections) | {
    'model': {'name': 'rnn', 'cell': 'lstm', 'width': 8, 'layers': 2}
  }
  return prepare.prepare(api.read_config(config))


def parts_of(batches):
  """{name: [rows, time of all batches]}."""
  batches = list(batches)
  return {
    name: np.concatenate([batch[name] for batch in batches], 1) for name in ('inputs', 'targets', 'mask')
  }


def nats_of(experiment, params, parts):
  """Of each token [rows, time], by one pass that reads each row from beginning to end."""
  model = models.build(experiment.config['model'])
  logits = jax.jit(model.apply)({'params': params}, parts['inputs'])
  return np.asarray(softmax_cross_entropy(logits, parts['targets']))


@pytest.mark.parametrize('mode', ['mesh', 'pmap'])
def test_an_evaluation_reads_each_part_of_the_split_as_one_text(experiment, mode):
  config = experiment.config | {'parallel': experiment.config['parallel'] | {'mode': mode}}
  program = parallel.make_parallel(config, tasks.build, jax.devices()[:2])
  floats, dataset = program.put_floats(floats_of(config)), experiment.dataset
  first = program.put_batch(dataset.train_batch(0))
  state = program.init(floats, jax.random.key(0), first)
  state, _ = program.step(floats, state, first)  # leaves a state that the split must not begin with
  found = hooks.evaluate(program, floats, state, dataset, lambda means: means)
  parts = parts_of(dataset.validation_batches())
  assert dataset.validation_size > 2
  nats = nats_of(experiment, state.params, parts)
  assert found['loss'] == pytest.approx(np.average(nats, weights=parts['mask']), rel=1e-5)
  again = hooks.evaluate(program, floats, state, dataset, lambda means: means)
  assert again == found


def test_training_reads_on_where_the_last_batch_ended(experiment):
  """With a rate of 0 nothing is learned, so that the losses are those of one pass over all the batches."""
  config, dataset = experiment.config, experiment.dataset
  program = parallel.make_parallel(config, tasks.build, jax.devices()[:1])
  floats = program.put_floats(floats_of(config) | {'optimizer.learning_rate': 0.0})
  batches = [dataset.train_batch(step) for step in range(3)]
  state = program.init(floats, jax.random.key(0), batches[0])
  params, losses = jax.device_get(state.params), []
  for batch in batches:
    state, metrics = program.step(floats, state, batch)
    losses.append(float(metrics['loss']))
  nats = nats_of(experiment, params, parts_of(batches))
  np.testing.assert_allclose(losses, nats.reshape(ROWS, 3, -1).mean((0, 2)), rtol=1e-5)


def test_rows_of_image_tokens_cannot_be_carried_on():
  made = {'task': {'carry_state': True}, 'model': {'name': 'rnn'}, 'data': {'source': 'run:vq'}}
  with pytest.raises(UsageError, match='rows of image tokens do not go on from batch to batch'):
    language.check_carry(api.read_config({'task': {'name': 'language'} | made.pop('task')} | made))
