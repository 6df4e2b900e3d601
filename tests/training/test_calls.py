"""Several steps in one call of the program: the steps are those of single calls, and a run goes on bit for bit."""

import jax
import numpy as np
import pytest

from aigc_jax import api, run
from aigc_jax.errors import UsageError
from aigc_jax.training import placement, prepare
from aigc_jax.training.loop import Hook, loop, of_each
from tests import kill_and_resume, tiny, tiny_images
from tests.training.test_families import acting, train_until_killed

pytestmark = pytest.mark.usefixtures('cached_programs')


def with_calls(config, stride):
  return config | {'training': config['training'] | {'steps_per_call': stride}}


def values(path):
  """{(step, name): number} of metrics.jsonl, clocks left out."""
  rows = run.read_metrics(path)
  return {
    (row['step'], n): v for row in rows for n, v in row.items() if n != 'step' and not n.startswith('time/')
  }


@pytest.mark.parametrize('family', ['q_learning', pytest.param('resnet', marks=pytest.mark.slow)])
def test_steps_are_those_of_single_calls_and_go_on_bit_for_bit(family, source, tmp_path):
  """Worlds and replay; images that lie on the device, with batch statistics."""
  if family == 'q_learning':
    config = acting(source)
  else:
    config = tiny_images.config(tiny_images.write_images(tmp_path / 'images.npz'), family)
  alone, together = (
    tiny.train(config, tmp_path / 'alone'),
    tiny.train(with_calls(config, 4), tmp_path / 'calls'),
  )
  found, expected = values(together.path), values(alone.path)
  assert found.keys() == expected.keys()
  for key, value in expected.items():
    assert found[key] == pytest.approx(value, rel=2e-4, abs=1e-6), key  # one program fuses what two do not
  train_until_killed(8, with_calls(config, 4), tmp_path / 'broken')
  resumed = api.resume(tmp_path / 'broken', quiet=True)
  assert kill_and_resume.differences(resumed.path, together.path) == []


@pytest.mark.parametrize('mode', ['mesh', 'pmap'])
def test_several_devices_take_them_too(mode, source):
  config = tiny.config(source) | {'parallel': {'mode': mode, 'data': 4}}
  made = prepare.prepare(api.read_config(with_calls(config, 4)))
  placed = placement.place(made)
  first = placed.program.init(placed.floats, placed.key, placed.example)
  calls = placement.step_function(placed, placement.compile_calls(made, placed)[0])
  _, metrics = calls(
    jax.tree.map(lambda x: x.copy(), first), placement.batches_on_devices(placed, made.dataset, 0, 4)
  )
  single, losses = placement.step_function(placed, placement.compile_steps(made, placed)[0]), []
  for i in range(4):
    first, found = single(first, placement.batch_on_devices(placed, made.dataset, i))
    losses.append(float(found['loss']))
  np.testing.assert_allclose(metrics['loss'], losses, rtol=1e-5)


def test_hooks_are_called_between_calls_with_all_steps_recorded():
  told, record = [], lambda step, metrics: told.append((step, float(metrics['loss'])))
  step = lambda state, batch: (state + 3, {'loss': np.arange(state, state + 3, dtype=np.float32)})
  hook = Hook(6, lambda at, state: told.append(('hook', at, state)))
  interrupted = lambda at: at >= 9
  outcome = loop(step, 0, lambda at: at, 0, 15, of_each(record, 3), [hook], interrupted, 3)
  assert (outcome.step, outcome.reason, outcome.state) == (9, 'interrupted', 9)
  assert told == [*((i + 1, i) for i in range(6)), ('hook', 6, 6), *((i + 1, i) for i in range(6, 9))]


@pytest.mark.parametrize(
  ('training', 'message'),
  [
    (
      {'steps_per_call': 5},
      'training.steps: 12 is no multiple of config.training.steps_per_call = 5; use 15',
    ),
    ({'steps_per_call': 3}, 'training.evaluate_every: 4 is no multiple .* use 6'),
  ],
)
def test_intervals_that_do_not_come_out_even_are_refused(training, message, source, tmp_path):
  with pytest.raises(UsageError, match=message):
    tiny.train(tiny.config(source, training=training), tmp_path / 'run')


def test_a_run_is_made_longer_by_whole_calls(source, tmp_path):
  tiny.train(with_calls(tiny.config(source), 4), tmp_path / 'run')
  with pytest.raises(UsageError, match=r'training.steps: 14 is no multiple'):
    api.resume(tmp_path / 'run', steps=14, quiet=True)
  assert api.resume(tmp_path / 'run', steps=16, quiet=True).step == 16
