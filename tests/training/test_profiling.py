"""Traces of some steps: what is written, and which steps it holds."""

import gzip
import json
import re

import jax
import jax.numpy as jnp
import pytest

from aigc_jax.errors import Interrupted, UsageError
from aigc_jax.training import profiling
from tests import tiny


class Lines(list):
  say = list.append


def events_of(folder):
  """The events of the one trace under a folder, as Perfetto reads them; TensorBoard's file lies beside it."""
  (there,) = (folder / 'plugins/profile').iterdir()  # TensorBoard's profiler looks for plugins/profile/TIME
  names = sorted(path.name for path in there.iterdir())
  assert sum(name.endswith('.xplane.pb') for name in names) == 1, names
  (xplane,) = there.glob('*.xplane.pb')
  assert xplane.stat().st_size > 1000
  with gzip.open(there / 'perfetto_trace.json.gz') as file:
    events = json.load(file)['traceEvents']
  assert events
  return events


def steps_of(folder):
  """The numbers of the steps that a trace holds."""
  named = [event for event in events_of(folder) if event.get('name') == 'train']
  return sorted(int(event['args']['step_num']) for event in named)


def take(span, folder, start=0, stop=6, fails_at=None):
  """Lines that were said while steps of a toy were taken."""
  step = jax.jit(lambda state, batch: (state + batch, {'loss': state.sum()}))
  lines, state = Lines(), jnp.zeros(4)

  def function(state, batch):
    if batch == fails_at:
      raise Interrupted('by a signal')
    return step(state, float(batch))

  with profiling.traced(function, start, span, folder, lines) as traced:
    for i in range(start + 1, stop + 1):
      state, _ = traced(state, i)
  assert state.tolist() == [sum(range(start + 1, stop + 1))] * 4, (
    'the steps are what they are without a trace'
  )
  return lines


@pytest.mark.parametrize(
  ('span', 'start', 'steps'),
  [((2, 4), 0, [2, 3, 4]), ((1, 1), 0, [1]), ((6, 6), 0, [6]), ((2, 5), 3, [4, 5])],
)
def test_a_trace_holds_the_steps_of_its_span_that_are_to_come(tmp_path, span, start, steps):
  lines = take(span, tmp_path, start)
  assert steps_of(tmp_path) == steps
  assert len(lines) == 1
  assert str(tmp_path) in lines[0]


def test_a_run_that_starts_after_the_span_says_so(tmp_path):
  lines = take((2, 4), tmp_path / 'profile', start=4)
  assert lines == ['note: no trace, since step 4, the last of --profile, was taken before']
  assert not (tmp_path / 'profile').exists()


def test_without_a_span_the_step_is_the_very_same(tmp_path):
  function = lambda state, batch: (state, {})
  with profiling.traced(function, 0, None, tmp_path, Lines()) as traced:
    assert traced is function


def test_what_ends_within_the_span_closes_its_trace(tmp_path):
  with pytest.raises(Interrupted):
    take((2, 5), tmp_path / 'first', fails_at=4)
  assert steps_of(tmp_path / 'first') == [2, 3, 4], 'the one that failed too'
  take((2, 5), tmp_path / 'second', stop=3)  # as when a signal has come
  assert steps_of(tmp_path / 'second') == [2, 3]
  take((1, 1), tmp_path / 'third')  # no trace is left open, or this one could not begin
  assert steps_of(tmp_path / 'third') == [1]


@pytest.mark.parametrize(
  'text', ['', '3', '2-4', '4:2', '0:2', '2:13', '-1:2', '2:4:6', 'a:b', '2:4 ', '²:4']
)
def test_a_span_that_is_none_is_one_line(text):
  with pytest.raises(UsageError) as error:
    profiling.span(text, 12)
  line = str(error.value)
  assert '\n' not in line
  assert line.startswith(f'--profile={text}: ')
  assert 'FIRST:LAST' in line
  assert '12' in line


def test_spans():
  assert profiling.span(None, 12) is None
  assert profiling.span('1:12', 12) == (1, 12)
  assert profiling.span('5:5', 12) == (5, 5)


def test_a_run_writes_its_trace_into_its_folder(source, tmp_path):
  config = tiny.config(source, training={'steps': 3, 'evaluate_every': None, 'checkpoint_every': None})
  trained = tiny.train(config, tmp_path / 'run', profile='2:2')
  assert steps_of(trained.path / 'profile') == [2]
  log = (trained.path / 'log.txt').read_text(encoding='utf-8')
  assert len(re.findall(r'^trace: .*run/profile, ', log, re.MULTILINE)) == 1
