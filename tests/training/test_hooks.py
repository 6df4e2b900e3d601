"""What is called between steps, with plain functions in the place of programs: progress and evaluation."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import image

from aigc_jax import files
from aigc_jax.errors import DataError
from aigc_jax.task import State
from aigc_jax.training import console, hooks


class Rows(list):
  """A writer of metrics that keeps them."""

  def write(self, step, values):
    self.append((step, values))


def metrics_of(step, weight=3000):
  values = {'loss': 4 - step / 10, 'gradient_norm': 1.0, 'parameter_norm': 2.0}
  return values | {'learning_rate': 0.1, 'weight': weight}


@pytest.fixture
def seconds(monkeypatch):
  """A list whose sum is the time."""
  passed = []
  monkeypatch.setattr(hooks, 'time', SimpleNamespace(perf_counter=lambda: sum(passed)))
  return passed


def recorder(kind='cpu', **options):
  """(record, rows, notes) of steps 10 to 15, written every 2, with a console of plain lines."""
  rows, notes = Rows(), {}
  record = hooks.recorder(
    rows,
    console.Console(),
    start=10,
    steps=15,
    log_every=2,
    unit='tokens',
    devices=[SimpleNamespace(device_kind=kind)] * 2,
    notes=notes,
    **{'flops': None, 'saved': lambda: notes.get('saved')} | options,
  )
  return record, rows, notes


def test_the_plain_lines_of_progress(seconds, monkeypatch, capsys):
  monkeypatch.setattr(console, 'PLAIN_SECONDS', -1.0)
  record, rows, notes = recorder()
  for step in range(11, 16):
    seconds.append(30.0)
    record(step, metrics_of(step))
    assert notes['step'] == step
    if step == 12:  # a checkpoint that takes 20 s
      seconds.append(20.0)
      notes |= {'saved': 12, 'pause': 20.0}
  # The rate is that of the steps alone; what is left will have its pauses too.
  assert capsys.readouterr().err.splitlines() == [
    'step 12/15  loss 2.8000  100 tokens/s  ETA 1:30',
    'step 14/15  loss 2.6000  100 tokens/s  ETA 0:35  saved 12',
    'step 15/15  loss 2.5000  100 tokens/s  ETA 0:00  saved 12',
  ]
  assert [step for step, _ in rows] == [12, 14, 15]
  assert rows[1][1] == {
    'train/loss': 2.6,
    'train/gradient_norm': 1.0,
    'train/parameter_norm': 2.0,
    'train/weight': 3000.0,
    'learning_rate': 0.1,
    'time/seconds': 140.0,
    'time/step_seconds': 30.0,
    'time/tokens_per_second': 100.0,
  }


def test_the_share_of_the_peak_is_of_all_devices(seconds, capsys):
  record, rows, _ = recorder('NVIDIA H100 80GB HBM3', flops=0.25 * 2 * 989e12 * 30)
  for step in range(11, 16):
    seconds.append(30.0)
    record(step, metrics_of(step))
  assert [values['time/share_of_peak'] for _, values in rows] == pytest.approx([0.25] * 3)
  assert '25.0% of peak' in capsys.readouterr().err.splitlines()[-1]


def test_without_a_terminal_a_line_comes_every_ten_seconds_and_at_the_end(monkeypatch, capsys):
  seconds = [0.0]
  monkeypatch.setattr(console, 'time', SimpleNamespace(monotonic=lambda: seconds[0]))
  with console.Console() as lines:
    for step in range(1, 10):
      seconds[0] += 4
      lines.progress(step, 9, f'step {step}')
  assert capsys.readouterr().err.split('\n') == ['step 3', 'step 6', 'step 9', '']
  with console.Console() as lines:
    lines.progress(1, 9, 'step 1')
    lines.progress(9, 9, 'step 9')
  assert capsys.readouterr().err == 'step 9\n'


def evaluation(batches, **training):
  """(hook, rows written, batches evaluated) on a split of (sum, weight) pairs."""
  evaluated, rows = [], Rows()

  def evaluate(floats, state, batch):
    assert state.extra == len(evaluated), 'what the batch before left'
    evaluated.append(batch)
    total, weight = batch
    return {'loss': (total, weight), 'accuracy': (weight / 2, weight)}, len(evaluated)

  training = {'patience': None, 'best_metric': 'validation/loss', 'evaluate_every': 5} | training
  hook = hooks.evaluation(
    {'training': training},
    SimpleNamespace(evaluate=evaluate, put_batch=lambda batch: batch, part=slice(None)),
    {},
    SimpleNamespace(validation_batches=lambda part: iter(batches)),
    SimpleNamespace(report=lambda means: means | {'twice': 2 * means['loss']}, higher_is_better=()),
    rows,
    console.Console(quiet=True),
    [],
    {},
  )
  return hook, rows, evaluated


BATCHES = [(8.0, 4.0), (9.0, 1.0), (0.0, 0.0), (5.0, 5.0)]  # the mean of their means is not the mean


@pytest.mark.parametrize(
  ('count', 'mean'), [(1, 8 / 4), (2, 17 / 5), (3, 17 / 5), (4, 22 / 10), (9, 22 / 10), (None, 22 / 10)]
)
def test_evaluation_of_the_first_batches_is_the_mean_over_just_these(count, mean):
  hook, rows, evaluated = evaluation(BATCHES, evaluate_batches=count)
  assert hook.every == 5
  state = State(10, {}, None, (), None, 0, None)
  assert not hook.call(10, state)
  assert evaluated == BATCHES[:count]
  assert state.extra == 0
  ((step, values),) = rows
  del values['time/evaluation_seconds']
  means = {'validation/loss': mean, 'validation/accuracy': 0.5, 'validation/twice': 2 * mean}
  assert (step, values) == (10, pytest.approx(means))


def test_a_split_without_a_batch_is_refused():
  hook, *_ = evaluation([], evaluate_batches=2)
  with pytest.raises(DataError, match='holds no batch'):
    hook.call(10, 'state')


@pytest.mark.parametrize('dtype', [np.float32, np.uint8, bool, jnp.bfloat16])
@pytest.mark.parametrize('shape', [(4, 6), (4, 6, 1), (4, 6, 3)])
def test_images_are_written_as_they_are(dtype, shape, tmp_path):
  array = np.zeros(shape, dtype)
  array[1, 2] = 255 if dtype == np.uint8 else 1
  files.write_image(tmp_path / 'a.png', array)
  found = image.imread(tmp_path / 'a.png')[..., :3]  # [height, width, 3], from 0 to 1
  expected = np.zeros((4, 6, 3))
  expected[1, 2] = 1
  np.testing.assert_array_equal(found, expected)
