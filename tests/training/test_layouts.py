"""A few families on eight devices against one, on uneven batches: the numbers are the same however arrays lie.

All families and layouts, 20 steps of each: `python -m tests.equality`.
"""

import functools

import jax
import numpy as np
import pytest

from aigc_jax.training import checkpoint, hooks, state_leaves
from tests import equality

STEPS = 3
# Devices add in another order, which is a few units in the last place (6e-8) of a loss. Adam divides a gradient by its
# own size, so that rounding of those near 0 moves a few parameters by as much as a step; of the norm that is little.
LOSS, PARAMS = 3e-6, 5e-5


def config_of(source, family='transformer', **sections):
  config = equality.FAMILIES[family](source)
  if 'layers' in config['model']:
    config['model'] = config['model'] | {'layers': 1}
  for section, fields in sections.items():
    config[section] = config[section] | fields
  return config


def uneven(batch, step):
  """Some of the batch's targets, and all of the first device's rows and of the last row, count for nothing."""
  mask = batch['mask'] * (np.random.default_rng(step).random(batch['mask'].shape) > 0.3)
  mask[:2] = mask[-1] = 0
  return batch | {'mask': mask.astype(np.float32)}


def train(config, layout='data', devices=1):
  """((losses [steps], last State), evaluation {name: mean} of the validation split, whose last batch is padded)."""
  made, placed = equality.prepared(config, layout, devices)
  state, losses = placed.program.init(placed.floats, placed.key, placed.example), []
  for i in range(STEPS):
    batch = placed.program.put_batch(uneven(made.dataset.train_batch(i), i)) | placed.resident
    state, metrics = placed.program.step(placed.floats, state, batch)
    losses.append(float(metrics['loss']))  # awaited, since many pretended devices share two cores
  last = list(made.dataset.validation_batches())[-1]
  assert 0 < last['mask'].sum() < last['mask'].size
  return (np.array(losses), state), hooks.evaluate(
    placed.program, placed.floats, state, made.dataset, made.task.report
  )


@pytest.fixture(scope='module')
def alone(source):
  """(family, sections) -> what `train` gives on one device."""
  return functools.cache(
    lambda family='transformer', sections=(): train(
      config_of(source, family, **{k: dict(v) for k, v in sections})
    )
  )


def assert_equal(found, expected, loss=LOSS, params=PARAMS):
  (found, means), (expected, alone_means) = found, expected
  differs, distance = equality.differences(found, expected)
  assert differs < loss
  assert distance < params
  assert means == pytest.approx(alone_means, rel=10 * loss)  # one step more of moved parameters


@pytest.mark.parametrize(
  ('family', 'layout'),
  [
    ('transformer', 'fsdp'),
    ('transformer', 'tensor'),
    pytest.param('transformer', 'mixed', marks=pytest.mark.slow),  # (that of frozen parameters is mixed too)
    ('transformer', 'pmap'),
    pytest.param('rnn', 'data', marks=pytest.mark.slow),
    ('rnn', 'pmap'),
    pytest.param('encoder_decoder', 'tensor', marks=pytest.mark.slow),  # compiling it takes most of a minute
  ],
)
def test_eight_devices_find_what_one_finds(source, alone, family, layout):
  found = train(config_of(source, family), layout, 8)
  assert_equal(found, alone(family))
  extra = state_leaves.host_copies(checkpoint.flat(found[0][1].extra))
  for path, leaf in state_leaves.host_copies(checkpoint.flat(alone(family)[0][1].extra)).items():
    np.testing.assert_allclose(extra[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)


def test_frozen_parameters_and_microbatches_in_parts(source, alone):
  sections = (('training', (('freeze', 'embed|attention'), ('microbatches', 2))),)
  config = config_of(source, training={'freeze': 'embed|attention', 'microbatches': 2})
  found = train(config, 'mixed', 8)
  assert_equal(found, alone('transformer', sections))
  _, placed = equality.prepared(config, 'mixed', 8)
  first = placed.program.init(placed.floats, placed.key, placed.example)
  state, wanted = found[0][1], checkpoint.flat(placed.target)
  assert {'fsdp', 'tensor'} <= {axis for leaf in jax.tree.leaves(state.frozen) for axis in leaf.sharding.spec}
  for path, leaf in checkpoint.flat(state).items():
    assert leaf.sharding.is_equivalent_to(wanted[path].sharding, leaf.ndim), path
  for before, after in zip(jax.tree.leaves(first.frozen), jax.tree.leaves(state.frozen), strict=True):
    np.testing.assert_array_equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_what_is_computed_again_is_gathered_again(source, alone, remat):
  assert_equal(train(config_of(source, model={'remat': remat}), 'fsdp', 8), alone())


@pytest.mark.slow
@pytest.mark.parametrize('name', ['muon', 'adafactor', 'lamb', 'lion', 'sgd'])
def test_optimizers_that_look_across_an_array(source, alone, name):
  """Newton-Schulz, factors, norms of blocks: of whole arrays, which lie in parts. Width 256: Adafactor has factors."""
  wide = {
    'model': {'width': 256} if name == 'adafactor' else {},
    'optimizer': {'name': name, 'learning_rate': 1e-3},
  }
  sections = tuple((section, tuple(fields.items())) for section, fields in wide.items())
  # Lion steps by signs, so a gradient near 0 whose sign rounding turns moves its parameter by two steps.
  assert_equal(
    train(config_of(source, **wide), 'fsdp', 8), alone('transformer', sections), loss=2e-5, params=2e-3
  )


def test_bfloat16_computes_and_float32_is_kept(source, alone):
  (losses, state), means = train(config_of(source, training={'precision': 'bfloat16'}), 'fsdp', 8)
  for tree in (state.params, state.opt, state.average):
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if leaf.ndim}
    assert kinds == {'float32'}
  (expected, _), expected_means = alone()
  # 8 bits of significand: 4e-3 of each activation, of which a mean over hundreds of targets keeps a part
  np.testing.assert_allclose(losses, expected, rtol=4e-3)
  assert np.abs(losses / expected - 1).max() > LOSS, 'it does compute in bfloat16'
  assert means['loss'] == pytest.approx(expected_means['loss'], rel=4e-3)
