"""The language task on packed documents with uneven masks: every way of running it gives the same numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import api, tasks
from aigc_jax.config import floats_of
from aigc_jax.errors import UsageError
from aigc_jax.training import parallel, prepare
from aigc_jax.training import step as step_module
from tests import tiny

STEPS, ROWS, DEVICES = 3, 8, 4
RATES = (1e-3, 3e-3, 1e-2)


@pytest.fixture(scope='module')
def packed(tmp_path_factory):
  """The experiment on a JSON-lines file of documents of 3 to 12 characters."""
  path, draw = tmp_path_factory.mktemp('corpus') / 'poems.jsonl', np.random.default_rng(0)
  texts = [''.join(draw.choice(list('abcdefg '), draw.integers(3, 13))) for _ in range(300)]
  path.write_text('\n'.join(json.dumps({'text': text}) for text in texts), encoding='utf-8')
  config = tiny.config(
    f'jsonl:{path}', data={'packing': 'documents', 'batch_size': ROWS}, optimizer={'clip_norm': 0.1}
  )
  return prepare.prepare(api.read_config(config))


def batch_at(experiment, step):
  """A packed batch whose rows count for very different numbers of tokens; one counts for none."""
  batch, draw = experiment.dataset.train_batch(step), np.random.default_rng(step)
  keep = np.arange(16) < draw.integers(0, 17, ROWS)[:, None]  # [rows, time]
  keep[step % ROWS] = False
  batch['mask'] *= keep
  return batch


def with_fields(experiment, **sections):
  return {name: fields | sections.get(name, {}) if isinstance(fields, dict) else fields
          for name, fields in experiment.config.items()}  # fmt: skip


def run(experiment, devices=1, rate=1e-2, **sections):
  """(losses and gradient norms [steps, 2], last State, evaluation of two padded batches)."""
  config = with_fields(experiment, **sections)
  program = parallel.make_parallel(config, tasks.build, jax.devices()[:devices])
  floats = program.put_floats(floats_of(config) | {'optimizer.learning_rate': rate})
  state, seen = program.init(floats, jax.random.key(0), batch_at(experiment, 0)), []
  for i in range(STEPS):
    state, metrics = program.step(floats, state, program.put_batch(batch_at(experiment, i)))
    seen.append([float(metrics['loss']), float(metrics['gradient_norm'])])
  batches = list(experiment.dataset.validation_batches())[-2:]
  sums = [jax.device_get(program.evaluate(floats, state, program.put_batch(batch))[0]) for batch in batches]
  return np.array(seen), state, sums


@pytest.fixture(scope='module')
def alone(packed):
  return run(packed)


def test_the_batches_are_packed_and_uneven(packed):
  batches = [batch_at(packed, step) for step in range(STEPS)]
  assert max(batch['segments'].max() for batch in batches) > 1
  assert min(batch['segments'].min() for batch in batches) == 0, 'some row is padded'
  for batch in batches:
    weights = batch['mask'].sum(1)
    assert weights.min() == 0
    assert len(set(weights.reshape(4, 2).sum(1).tolist())) > 1, 'microbatches and devices weigh differently'
  assert list(packed.dataset.validation_batches())[-1]['mask'][-1].sum() == 0, 'the last batch is padded'


def assert_same(found, expected):
  # Sums in another order: 1e-7 of rounding in the gradients, which three steps of Adam magnify where they are tiny.
  np.testing.assert_allclose(found[0], expected[0], rtol=2e-5)
  for ours, theirs in zip(jax.tree.leaves(found[1][:-1]), jax.tree.leaves(expected[1][:-1]), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=1e-4)
  for ours, theirs in zip(found[2], expected[2], strict=True):
    assert ours.keys() == theirs.keys()
    for name, pair in ours.items():
      np.testing.assert_allclose(pair, theirs[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize('mode', ['mesh', 'pmap'])
def test_four_devices_give_the_numbers_of_one(packed, alone, mode):
  assert_same(run(packed, DEVICES, parallel={'mode': mode, 'data': DEVICES}), alone)


@pytest.mark.parametrize('microbatches', [2, 4])
def test_microbatches_give_the_numbers_of_the_big_batch(packed, alone, microbatches):
  assert_same(run(packed, training={'microbatches': microbatches}), alone)


def test_microbatches_on_devices_too(packed, alone):
  both = {'training': {'microbatches': 2}, 'parallel': {'mode': 'pmap', 'data': DEVICES}}
  assert_same(run(packed, DEVICES, **both), alone)


def test_three_lanes_give_the_numbers_of_three_runs(packed):
  """Each lane has its own key, rate, clipping and dropout, so that one that gets another's is seen."""
  config = with_fields(packed, model={'dropout': 0.1})
  own = {
    'optimizer.learning_rate': RATES,
    'optimizer.clip_norm': (0.1, 0.2, 0.3),
    'model.dropout': (0.1, 0.2, 0.3),
  }
  floats_of_lane = lambda lane: floats_of(config) | {name: values[lane] for name, values in own.items()}
  keys = [jax.random.key(seed) for seed in (7, 0, 3)]
  program = step_module.lanes(step_module.make_program(config, tasks.build))
  stack = lambda *values: jnp.asarray(values, jnp.float32)
  floats = jax.tree.map(stack, *(floats_of_lane(lane) for lane in range(3)))
  state, step = jax.jit(program.init)(floats, jnp.stack(keys), batch_at(packed, 0)), jax.jit(program.step)
  losses = []
  for i in range(STEPS):
    state, metrics = step(floats, state, batch_at(packed, i))
    losses.append(np.asarray(metrics['loss']))
  single = parallel.make_parallel(config, tasks.build, jax.devices()[:1])
  for lane, key in enumerate(keys):
    floats = single.put_floats(floats_of_lane(lane))
    solo = single.init(floats, key, batch_at(packed, 0))
    for i in range(STEPS):
      solo, metrics = single.step(floats, solo, single.put_batch(batch_at(packed, i)))
      assert float(metrics['loss']) == pytest.approx(losses[i][lane], rel=2e-5)
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(solo.params), strict=True):
      np.testing.assert_allclose(ours[lane], theirs, rtol=2e-3, atol=1e-4)


def test_what_does_not_divide_is_refused(packed):
  for sections, words in (
    (
      {'training': {'microbatches': 3}},
      'batch_size: 8 rows do not divide into config.training.microbatches = 3',
    ),
    ({'parallel': {'data': 3}}, 'data: 3 devices do not divide the 8 rows of a batch'),
    ({'parallel': {'data': 64}}, 'data: 64 devices are wanted, 8 are here'),
    ({'parallel': {'data': 0}}, '0 is not a device count'),
    (
      {'training': {'microbatches': 4}, 'parallel': {'data': 4}},
      'data: 4 devices do not divide the 2 rows of a microbatch',
    ),
  ):
    with pytest.raises(UsageError, match=words):
      prepare.prepare(with_fields(packed, **sections))


def test_the_vocabulary_and_the_context_fit_the_data(packed):
  assert packed.config['model']['vocabulary_size'] == packed.dataset.tokenizer.vocabulary_size
  assert packed.config['model']['context_length'] == 16
  for fields, words in (
    ({'vocabulary_size': 3}, 'vocabulary_size: 3 is too small'),
    ({'context_length': 8}, 'context_length: 8 is shorter than config.data.sequence_length = 16'),
  ):
    with pytest.raises(UsageError, match=words):
      tasks.complete(with_fields(packed, model=fields), packed.dataset)


def test_a_sample_prompt_outside_the_vocabulary_is_refused_at_once(packed):
  with pytest.raises(UsageError, match='鲸'):
    tasks.complete(with_fields(packed, task={'sample_prompt': '鲸'}), packed.dataset)
