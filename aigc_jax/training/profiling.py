"""A trace of some steps, for TensorBoard's profiler or https://ui.perfetto.dev."""

import contextlib
import re

import jax

from aigc_jax import files
from aigc_jax.errors import UsageError

FOLDER = 'profile'  # in the run folder


def span(text, steps):
  """'10:15' -> (10, 15), the first and last step that are traced; None -> None. Raises UsageError."""
  if text is None:
    return None
  found = re.fullmatch(r'(\d+):(\d+)', text)
  first, last = map(int, found.groups()) if found else (0, 0)
  if not 0 < first <= last <= steps:
    raise UsageError(
      f'--profile={text}: it takes FIRST:LAST, two steps from 1 to config.training.steps = {steps}, such as 10:15'
    )
  return first, last


@contextlib.contextmanager
def traced(step_function, start, span, folder, console, stride=1):
  """Yields the step function, traced from the first to the last step of `span`, of those that are still to come.

  Args:
    step_function: state, batch -> state, metrics. start: steps taken before. span: (first, last); None: none.
    folder: what the trace is written to. stride: steps that a call takes; those of a call are traced together.
  """
  if span is None or span[1] <= start:
    if span is not None:
      console.say(f'note: no trace, since step {span[1]}, the last of --profile, was taken before')
    yield step_function
    return
  taken, going = start, False

  def stop():
    nonlocal going
    if going:
      going = False
      with files.storage_errors(folder):
        jax.profiler.stop_trace()
      console.say(f'trace: {folder}, for `tensorboard --logdir` or, its .json.gz, https://ui.perfetto.dev')

  def step(state, batch):
    nonlocal taken, going
    taken += stride
    if taken - stride < max(span[0], start + 1) <= taken:
      jax.block_until_ready(state)  # what came before is no part of it
      with files.storage_errors(folder):
        jax.profiler.start_trace(folder, create_perfetto_trace=True)
      going = True
    if not going:
      return step_function(state, batch)
    with jax.profiler.StepTraceAnnotation('train', step_num=taken):  # by which TensorBoard tells steps apart
      state, metrics = step_function(state, batch)
    if taken >= span[1]:
      jax.block_until_ready(state)
      stop()
    return state, metrics

  try:
    yield step
  finally:
    stop()
