"""The loop, with plain functions in the place of programs: what is called when."""

import signal
import threading

import pytest

from aigc_jax.errors import DataError
from aigc_jax.training.loop import Hook, Outcome, loop, read, signals


def run(start, stop, every=(), asks_at=(), interrupted_at=None):
  """Takes steps with fakes -> (Outcome, [what was called, with its step]).

  `every`: that of each hook. `asks_at`: (hook, step) pairs where a hook asks for the end. `interrupted_at`: the step
  during which the signal comes. A batch is logged by the step that takes it.
  """
  log = []

  def step_function(state, batch):
    assert batch == f'batch {state}'
    log.append(('dispatch', state + 1))
    return state + 1, {'of': state + 1}

  def batch_at(step):
    log.append(('batch', step + 1))
    return f'batch {step}'

  def record(step, metrics):
    assert metrics == {'of': step}
    log.append(('record', step))

  def hook(number, every):
    def call(step, state):
      assert state == step
      log.append((number, step))
      return (number, step) in asks_at

    return Hook(every, call)

  hooks = [hook(number, every) for number, every in enumerate(every)]
  interrupted = lambda step: ('dispatch', interrupted_at) in log
  return loop(step_function, start, batch_at, start, stop, record, hooks, interrupted), log


def steps_of(what, log):
  return [step for name, step in log if name == what]


def assert_in_order(log, *events):
  places = [log.index(event) for event in events]
  assert places == sorted(places), log


@pytest.mark.parametrize(('start', 'stop'), [(0, 5), (3, 7), (6, 7)])
@pytest.mark.parametrize('every', [(), (None,), (2,)])
def test_every_step_has_its_batch_and_is_recorded_once_in_order(start, stop, every):
  outcome, log = run(start, stop, every)
  assert outcome == Outcome(stop, stop, 'done')
  for what in ('batch', 'dispatch', 'record'):
    assert steps_of(what, log) == list(range(start + 1, stop + 1))


def test_metrics_are_read_when_the_next_step_is_on_its_way_and_the_batch_after_it_is_there():
  """So that the device never waits: not for a reader, and not for a batch."""
  _, log = run(0, 6)
  for step in range(1, 6):
    assert_in_order(log, ('dispatch', step + 1), ('record', step))
  for step in range(1, 5):
    assert_in_order(log, ('batch', step + 2), ('record', step))
  assert log[-2:] == [('record', 5), ('record', 6)]


def test_metrics_are_read_before_a_hook_that_is_due():
  _, log = run(0, 7, every=(3,))
  for step in (3, 6, 7):
    assert_in_order(log, ('dispatch', step), ('record', step), (0, step))
  for step in (3, 6):
    assert_in_order(log, ('batch', step + 1), ('record', step))  # the next batch is on its way all the same
    assert_in_order(log, (0, step), ('dispatch', step + 1))  # which takes the state's place
  for step in (1, 2, 4, 5):
    assert_in_order(log, ('dispatch', step + 1), ('record', step))  # as ever


def test_hooks_are_called_at_their_multiples_and_at_the_end_in_order():
  of_hooks = lambda log: [event for event in log if isinstance(event[0], int)]
  _, log = run(0, 8, every=(3, None, 2))
  assert of_hooks(log) == [(2, 2), (0, 3), (2, 4), (0, 6), (2, 6), (0, 8), (1, 8), (2, 8)]
  _, log = run(4, 7, every=(3, None, 2))
  assert of_hooks(log) == [(0, 6), (2, 6), (0, 7), (1, 7), (2, 7)], 'by the step, wherever the run began'


def test_a_hook_ends_the_run_when_the_others_of_that_step_are_done():
  outcome, log = run(0, 9, every=(2, 4, None), asks_at=[(0, 4)])
  assert outcome == Outcome(4, 4, 'early stop')
  assert log[-3:] == [('record', 4), (0, 4), (1, 4)]
  outcome, log = run(0, 4, every=(2, 4, None), asks_at=[(0, 4)])
  assert outcome == Outcome(4, 4, 'early stop'), (
    'at the last step too, so that it is not made longer unawares'
  )
  assert log[-1] == (2, 4)


@pytest.mark.parametrize(('at', 'called'), [(5, []), (6, [(0, 6)])])
def test_an_interruption_ends_after_the_step_in_flight_and_calls_only_what_is_due(at, called):
  outcome, log = run(0, 9, every=(3, None), interrupted_at=at)
  assert outcome == Outcome(at, at, 'interrupted')
  assert steps_of('dispatch', log)[-1] == steps_of('record', log)[-1] == at
  after = log[log.index(('record', at)) + 1 :]
  assert after == called


def test_an_interruption_during_the_last_step_changes_nothing():
  assert run(0, 6, every=(4, None), interrupted_at=6) == run(0, 6, every=(4, None))


def test_only_a_loss_and_norms_must_be_finite():
  good = {'loss': 1.5, 'gradient_norm': 0.0, 'parameter_norm': 2, 'odd': float('nan')}
  assert read(3, good) == pytest.approx(good, nan_ok=True)
  for name in ('loss', 'gradient_norm', 'parameter_norm'):
    with pytest.raises(DataError, match=f'^step 3: {name.replace("_", " ")} is -inf$'):
      read(3, good | {name: float('-inf')})


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_its_handler_given_back(number):
  before = signal.getsignal(number)
  with signals() as interrupted:
    assert not interrupted(1)
    signal.raise_signal(number)
    assert interrupted(1)
  assert signal.getsignal(number) is before


def test_a_second_control_c_ends_at_once():
  with pytest.raises(KeyboardInterrupt), signals():  # noqa: PT012
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)


def test_a_run_in_another_thread_leaves_signals_alone():
  found = []

  def look():
    with signals() as interrupted:
      found.append((interrupted(1), signal.getsignal(signal.SIGTERM)))

  before = signal.getsignal(signal.SIGTERM)
  thread = threading.Thread(target=look)
  thread.start()
  thread.join()
  assert found == [(False, before)]
