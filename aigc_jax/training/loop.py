"""The one loop. It knows nothing of tasks: batches go in by step number, and hooks do everything that people see."""

import math
import os
import signal
import threading
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import jax

from aigc_jax.errors import DataError
from aigc_jax.training import processes

FINITE = ('loss', 'gradient_norm', 'parameter_norm')  # the metrics of a step that end a run otherwise


class Hook(NamedTuple):
  """Something done between steps: `call(step, state) -> bool`, where True asks for the run to end."""

  every: int | None  # steps; None: at the end only
  call: Callable

  def due(self, step, last):
    return step == last or (self.every is not None and step % self.every == 0)


class Outcome(NamedTuple):
  state: object
  step: int  # steps taken
  reason: str  # 'done', 'early stop' or 'interrupted'


def loop(
  step_function, state, batch_at, start, stop, record, hooks, interrupted=lambda step: False, stride=1
):
  """Takes steps `start` to `stop`.

  Args:
    step_function: state, batch -> state, metrics; it may donate the state.
    batch_at: step -> batch on the devices.
    record: called with (step, metrics) of every call in order; its metrics are read only after the next one is
      dispatched, so that reading never stalls the device.
    hooks: Hooks, called in order after the steps they are due at, all metrics through that step recorded.
    interrupted: step -> whether the loop ends after that step, which is in flight; only hooks that are due are called,
      so that a resumed run writes what an unbroken one writes.
    stride: steps that a call of step_function takes; `start`, `stop` and the intervals are multiples of it.
  """
  batch, waiting = batch_at(start), None
  for step in range(start + stride, stop + 1, stride):
    state, metrics = step_function(state, batch)
    if step < stop:
      batch = batch_at(step)
    if waiting:
      record(*waiting)
    waiting = step, metrics
    due, cut_short = [hook for hook in hooks if hook.due(step, stop)], interrupted(step) and step < stop
    if due or cut_short or step == stop:
      record(*waiting)
      waiting = None
    asked = [hook.call(step, state) for hook in due]
    if any(asked):
      return Outcome(state, step, 'early stop')
    if cut_short:
      return Outcome(state, step, 'interrupted')
  return Outcome(state, stop, 'done')


def of_each(record, stride):
  """`record` of single steps as that of calls that take `stride` steps, whose metrics are [stride] each."""

  def record_all(step, metrics):
    metrics = jax.device_get(metrics)
    for i in range(stride):
      record(step - stride + 1 + i, {name: values[i] for name, values in metrics.items()})

  return record if stride == 1 else record_all


def read(step, metrics):
  """Device metrics -> {name: float}. Raises DataError where the loss or a norm is not finite."""
  values = {name: float(value) for name, value in jax.device_get(metrics).items()}
  if found := fault(values):
    raise DataError(f'step {step}: {found}')
  return values


def fault(values):
  """'loss is nan' of the first of a step's numbers that must be finite and is not, or None."""
  bad = [name for name in FINITE if not math.isfinite(values[name])]
  return f'{bad[0].replace("_", " ")} is {values[bad[0]]}' if bad else None


@contextmanager
def signals():
  """Yields a function: step -> has SIGINT or SIGTERM come? A second SIGINT raises KeyboardInterrupt as usual.

  Of several processes, which have to end after the same step, JAX takes SIGTERM, and tells all of them.
  """
  several = processes.several()
  if threading.current_thread() is not threading.main_thread():
    yield processes.stop_together if several else lambda step: False
    return
  came = []

  def handle(number, frame):
    if came and number == signal.SIGINT:
      raise KeyboardInterrupt
    came.append(number)
    if several:
      os.kill(os.getpid(), signal.SIGTERM)

  caught = (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM)
  before = {number: signal.signal(number, handle) for number in caught}
  try:
    yield processes.stop_together if several else lambda step: bool(came)
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
