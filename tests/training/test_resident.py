"""A data set that lives on the device, and metrics of arrays: the same numbers every way."""

import jax
import numpy as np
import pytest

from aigc_jax.training import hooks
from aigc_jax.training.parallel import make_parallel
from tests.training.test_rehearsal import toy_config
from tests.training.toys import batch_at, variational

ROWS = np.random.default_rng(0).permutation(40)[:16]


def gathering(config):
  """A toy that learns from rows of a data set on the device; its evaluation counts by class, in arrays."""
  task = variational(config)

  def full(batch):
    return {'x': batch['resident']['x'][batch['rows']], 'mask': batch['mask']}

  def evaluate(params, extra, batch, context):
    classes = jax.nn.one_hot(batch['label'], 3) * batch['mask'][:, None]  # [rows, classes]
    hits = classes * (batch['x'][:, :1] > 0)
    total, (weight, _, _) = task.loss(params, extra, batch, context)
    return {'loss': (total, weight), 'hits': (hits.sum(0), classes.sum(0))}

  return task._replace(
    init=lambda key, batch: task.init(key, full(batch)),
    collect=lambda params, extra, batch, context: (extra, full(batch)),
    evaluate=evaluate,
  )


def resident():
  return {'x': np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)}


@pytest.mark.parametrize(
  ('devices', 'sections'),
  [(1, {}), (4, {}), (4, {'parallel': {'mode': 'pmap'}}), (1, {'training': {'microbatches': 2}})],
)
def test_rows_gathered_on_the_device_are_those_gathered_on_the_host(devices, sections):
  config, data, mask = toy_config('variational', **sections), resident(), batch_at(0)['mask']
  ends = []
  for build, held in ((gathering, data), (variational, None)):
    program = make_parallel(config, build, jax.devices()[:devices])
    whole = program.put_resident(held)
    rows = {'rows': ROWS, 'mask': mask} if held else {'x': data['x'][ROWS], 'mask': mask}
    state = program.init({}, jax.random.key(0), rows | whole)
    for _ in range(2):
      state, metrics = program.step({}, state, program.put_batch(rows) | whole)
    ends.append((state.params, metrics['loss']))
  jax.tree.map(np.testing.assert_array_equal, *ends)  # the same program but for the gather


@pytest.mark.parametrize(('devices', 'mode'), [(1, 'mesh'), (4, 'mesh'), (4, 'pmap')])
def test_metrics_of_arrays_are_divided_entry_by_entry(devices, mode):
  program = make_parallel(
    toy_config('variational', parallel={'mode': mode}), gathering, jax.devices()[:devices]
  )
  draw = np.random.default_rng(2)
  batches = [batch_at(i) | {'label': draw.integers(0, 3, 16)} for i in range(3)]
  state = program.init(
    {}, jax.random.key(0), {'rows': ROWS, 'mask': batches[0]['mask'], 'resident': resident()}
  )
  x, label, mask = (np.concatenate([batch[name] for batch in batches]) for name in ('x', 'label', 'mask'))
  chosen = [(label == c) & (mask > 0) for c in range(3)]
  expected = [(x[rows, 0] > 0).mean() for rows in chosen]
  dataset = type('Data', (), {'validation_batches': lambda self, part: iter(batches)})()
  report = lambda means: {f'hits_{c}': value for c, value in enumerate(means.pop('hits'))} | means
  found = hooks.evaluate(program, {}, state, dataset, report)
  np.testing.assert_allclose([found[f'hits_{c}'] for c in range(3)], expected, rtol=1e-6)
  assert all(type(value) is float for value in found.values())
