"""What happens between steps: metrics, progress, evaluation, samples, checkpoints. Each is called by the loop."""

import math
import os
import time

import jax
import numpy as np

from aigc_jax.errors import DataError
from aigc_jax.training.console import clock, count
from aigc_jax.training.loop import Hook, read
from aigc_jax.training.parallel import all_finite

# Peak floating-point operations a second of one device in bfloat16, from the makers' data sheets (dense).
PEAK_FLOPS = {
  'H200': 989e12,
  'H100': 989e12,
  'A100': 312e12,
  'L40S': 362e12,
  'L40': 181e12,
  'L4': 121e12,
  'V100': 125e12,
  'T4': 65e12,
  'TPU v4': 275e12,
  'TPU v5 lite': 197e12,
  'TPU v5p': 459e12,
  'TPU v6 lite': 918e12,
}


def recorder(writer, console, *, start, steps, log_every, unit, flops, devices, notes):
  """`record(step, metrics)` for the loop: to disk every `log_every` steps, to the progress line at each.

  Args:
    flops: of one step, or None.
    notes: shared with the other hooks: 'step', the last one read, 'checkpoint', the one saved last, and 'pause', the
      seconds they took.

  Raises: DataError where a loss or norm is not finite.
  """
  peak = sum(next((p for n, p in PEAK_FLOPS.items() if n in d.device_kind), math.nan) for d in devices)
  began = mark = time.perf_counter()
  since, seen = start, 0.0

  def record(step, metrics):
    nonlocal mark, since, seen
    notes['step'] = step
    values = read(step, metrics)
    seen += values['weight']
    if step % log_every and step != steps:
      return
    now = time.perf_counter()
    spent = max(now - mark - notes.pop('pause', 0.0), 1e-9)
    seconds, rate = spent / (step - since), seen / spent
    mark, since, seen = now, step, 0.0
    clocks = {'time/seconds': now - began, 'time/step_seconds': seconds, f'time/{unit}_per_second': rate}
    text = f'step {step}/{steps}  loss {values["loss"]:.4f}  {count(rate)} {unit}/s'
    if flops and math.isfinite(peak):
      clocks['time/share_of_peak'] = flops / seconds / peak
      text += f'  {clocks["time/share_of_peak"]:.1%} of peak'
    named = {f'train/{n}': v for n, v in values.items() if n != 'learning_rate'}
    writer.write(step, named | {'learning_rate': values['learning_rate']} | clocks)
    text += f'  ETA {clock((now - began) / (step - start) * (steps - step))}'
    saved = notes.get('checkpoint')
    console.progress(step, steps, text + (f'  saved {saved}' if saved is not None else ''))

  return record


def evaluate(parallel, floats, state, dataset, report, batches=None):
  """{name: mean} over the validation split (or its first `batches` batches), with `report` applied."""
  sums = None
  for i, batch in enumerate(dataset.validation_batches()):
    if batches is not None and i >= batches:
      break
    found = jax.device_get(parallel.evaluate(floats, state, parallel.put_batch(batch)))
    found = {name: np.array(pair, np.float64) for name, pair in found.items()}  # (sum, weight)
    sums = found if sums is None else {name: sums[name] + pair for name, pair in found.items()}
  if sums is None:
    raise DataError('the validation split holds no batch; raise config.data.validation_fraction')
  return report({name: float(value / max(weight, 1e-9)) for name, (value, weight) in sums.items()})


def evaluation(config, parallel, floats, dataset, task, writer, console, history, notes):
  """Writes the validation metrics; asks for the end of the run where patience is used up.

  Args:
    history: the patience metric's values so far, oldest first: what a resumed run has read back from disk.
    notes: 'validation' is set to (step, loss) for the checkpoint hook.
  """
  training = config['training']
  metric, patience = training['patience_metric'], training['patience']

  def call(step, state):
    began = time.perf_counter()
    means = evaluate(parallel, floats, state, dataset, task.report, training['evaluate_batches'])
    values = {f'validation/{name}': value for name, value in means.items()}
    writer.write(step, values | {'time/evaluation_seconds': time.perf_counter() - began})
    notes['validation'] = step, means['loss']
    ordered = sorted(means.items(), key=lambda item: item[0] != 'loss')
    shown = '  '.join(f'{name.replace("_", " ")} {value:.4f}' for name, value in ordered)
    console.say(f'step {step}: validation {shown}')
    if not math.isfinite(means['loss']):
      raise DataError(f'step {step}: validation loss is {means["loss"]}')
    history.append(values.get(metric, math.nan))
    if used_up(patience, history):
      console.say(f'step {step}: {metric} has not improved for {patience} evaluations; the run ends')
      return True
    return False

  return Hook(training['evaluate_every'], call)


def used_up(patience, history):
  """Whether none of the last `patience` values, oldest first, is the lowest; `patience` None: no."""
  if patience is None or not np.isfinite(history).any():
    return False
  return len(history) - 1 - int(np.nanargmin(history)) >= patience


def timed(hook, notes):
  """The hook, with its seconds added to notes['pause'], so that rates are those of the steps alone."""

  def call(step, state):
    began = time.perf_counter()
    try:
      return hook.call(step, state)
    finally:
      notes['pause'] = notes.get('pause', 0.0) + time.perf_counter() - began

  return hook._replace(call=call)


def samples(config, dataset, task, folder, console):
  """Writes what the task shows into samples/, texts to the console too."""

  def call(step, state):
    if task.show is None:
      return
    from aigc_jax.training.step import merge_frozen

    params = merge_frozen(state.params if state.average is None else state.average, state.frozen)
    shown = task.show(params, state.extra, dataset, jax.random.fold_in(state.key, step))
    for name, content in shown.items():
      path = os.path.join(folder, f'{step:08d}-{name}')
      with open(path, 'w', encoding='utf-8') as file:
        file.write(content)
      console.say(f'--- sample at step {step} ---\n{content}\n---')

  return Hook(config['training']['sample_every'], call)


def saver(checkpointer, writer, notes):
  """`save(step, state)`: once, after the metrics through `step` are on disk, and only if all of it is finite."""
  finite = jax.jit(all_finite)

  def save(step, state):
    if notes.get('checkpoint') == step:
      return
    if not finite(state._replace(key=None)):
      raise DataError(f'step {step}: the state holds numbers that are not finite')
    writer.flush()
    evaluated, loss = notes.get('validation', (None, None))
    checkpointer.save(step, state, metric=loss if evaluated == step else None)
    notes['checkpoint'] = step

  return save
