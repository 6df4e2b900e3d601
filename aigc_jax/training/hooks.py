"""What happens between steps: metrics, progress, evaluation, samples, checkpoints. Each is called by the loop."""

import math
import os
import pathlib
import time

import jax
import numpy as np

from aigc_jax import files
from aigc_jax.errors import DataError
from aigc_jax.training import processes
from aigc_jax.training.console import clock, count
from aigc_jax.training.loop import Hook, read
from aigc_jax.training.parallel import all_finite
from aigc_jax.training.step import merge_frozen

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


def recorder(writer, console, *, start, steps, log_every, unit, flops, devices, notes, saved):
  """`record(step, metrics)` for the loop: to disk every `log_every` steps, to the progress line at each.

  Args:
    flops: of one step, or None.
    notes: shared with the other hooks: 'step', the last one read, and 'pause', the seconds they took.
    saved: () -> the step of the newest complete checkpoint, or None.

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
    writer.write(step, named(values) | clocks)
    text += f'  ETA {clock((now - began) / (step - start) * (steps - step))}'
    newest = saved()
    console.progress(step, steps, text + (f'  saved {newest}' if newest is not None else ''))

  return record


def named(values):
  """The numbers of a step as metrics.jsonl has them."""
  learned = {f'train/{name}': value for name, value in values.items() if name != 'learning_rate'}
  return learned | {'learning_rate': values['learning_rate']}


def evaluate(parallel, floats, state, dataset, report, batches=None):
  """{name: mean} over the validation split (or its first `batches` batches), with `report` applied."""
  return means(evaluation_sums(parallel, floats, state, dataset, batches), report)


def evaluation_sums(parallel, floats, state, dataset, batches=None):
  """{name: (sum, weight)} over the validation split or its first `batches` batches, float64 on the host."""
  sums = None
  for i, batch in enumerate(dataset.validation_batches(parallel.part)):
    if batches is not None and i >= batches:
      break
    found, extra = parallel.evaluate(floats, state, parallel.put_batch(batch))
    state = state._replace(extra=extra)  # a carried hidden state goes on through the split
    found = jax.tree.map(np.float64, jax.device_get(found))  # {name: (sum, weight)}, numbers or arrays
    sums = found if sums is None else jax.tree.map(np.add, sums, found)
  if sums is None:
    raise DataError('the validation split holds no batch; raise config.data.validation_fraction')
  return sums


def means(sums, report):
  """{name: (sum, weight)} -> {name: mean}, with the task's `report` applied."""
  divided = {name: value / np.maximum(weight, 1e-9) for name, (value, weight) in sums.items()}
  return {name: float(value) for name, value in report(divided).items()}


def cost(task, name, value):
  """A metric as what the best evaluation has least of."""
  return -value if name.removeprefix('validation/') in task.higher_is_better else value


def evaluation(config, parallel, floats, dataset, task, writer, console, costs, notes):
  """Writes the validation metrics; asks for the end of the run where patience is used up; see `judge`."""
  training = config['training']

  def call(step, state):
    began = time.perf_counter()
    found = evaluate(parallel, floats, state, dataset, task.report, training['evaluate_batches'])
    return judge(training, task, step, found, time.perf_counter() - began, writer, console, costs, notes)

  return Hook(training['evaluate_every'], call)


def judge(training, task, step, found, seconds, writer, console, costs, notes):
  """Writes and shows an evaluation. Returns whether the run ends, its patience used up.

  Args:
    found: {name: mean}; seconds: what it took.
    costs: of the best_metric so far, oldest first: what a resumed run has read back from disk.
    notes: 'validation' is set to (step, cost) for the checkpoint hook.

  Raises: DataError where a number is not finite.
  """
  metric, patience = training['best_metric'], training['patience']
  values = {f'validation/{name}': value for name, value in found.items()}
  writer.write(step, values | {'time/evaluation_seconds': seconds})
  ordered = sorted(found.items(), key=lambda item: item[0] != 'loss')
  numbered = lambda name: name.rpartition('_')[2].isdecimal()  # one of many classes
  shown = '  '.join(f'{name.replace("_", " ")} {value:.4f}' for name, value in ordered if not numbered(name))
  console.say(f'step {step}: validation {shown}')
  bad = [name for name, value in ordered if not math.isfinite(value)]
  if bad:
    raise DataError(f'step {step}: validation {bad[0].replace("_", " ")} is {found[bad[0]]}')
  costs.append(cost(task, metric, values[metric]))
  notes['validation'] = step, costs[-1]
  if used_up(patience, costs):
    console.say(f'step {step}: {metric} has not improved for {patience} evaluations; the run ends')
    return True
  return False


def used_up(patience, costs):
  """Whether none of the last `patience` costs, oldest first, is the lowest; `patience` None: no."""
  return patience is not None and bool(costs) and len(costs) - 1 - int(np.argmin(costs)) >= patience


def timed(hook, notes):
  """The hook, with its seconds added to notes['pause'], so that rates are those of the steps alone."""

  def call(step, state):
    began = time.perf_counter()
    try:
      return hook.call(step, state)
    finally:
      notes['pause'] = notes.get('pause', 0.0) + time.perf_counter() - began

  return hook._replace(call=call)


def samples(config, parallel, dataset, task, folder, writer, console):
  """Writes what the task shows, see `show`. Of several processes the first one makes it, on one device, while the
  others wait."""

  def call(step, state):
    if task.show is None:
      return
    params = merge_frozen(state.params if state.average is None else state.average, state.frozen)
    params, extra, key = parallel.local_copies((params, state.extra, state.key))
    if processes.leads():
      show(task, dataset, params, extra, key, step, folder, writer, console)

  return Hook(config['training']['sample_every'], call)


def show(task, dataset, params, extra, key, step, folder, writer, console):
  """Writes what the task shows into `folder`: texts, which the console shows too, images as PNG, which TensorBoard
  shows too, and frames as GIF."""
  shown = task.show(params, extra, dataset, jax.random.fold_in(key, step))
  for name, content in shown.items():
    path = os.path.join(folder, f'{step:08d}-{name}')
    if isinstance(content, str):
      files.write_atomically(path, content)
      console.say(f'--- sample at step {step} ---\n{content}\n---')
    elif name.endswith('.gif'):
      files.write_animation(path, np.asarray(content))
      console.say(f'step {step}: sample {path}')
    else:
      height, width = files.write_image(path, np.asarray(content))
      writer.write_image(step, name.removesuffix('.png'), pathlib.Path(path).read_bytes(), height, width)
      console.say(f'step {step}: sample {path}')


def saver(checkpointer, writer, notes):
  """`save(step, state)`: once, after the metrics through `step` are on disk, and only if all of it is finite."""
  finite = jax.jit(all_finite)

  def save(step, state):
    if notes.get('checkpoint') == step:
      return
    if not finite(state._replace(key=None)):
      raise DataError(f'step {step}: the state holds numbers that are not finite')
    writer.flush()
    evaluated, cost_there = notes.get('validation', (None, None))
    checkpointer.save(step, state, metric=cost_there if evaluated == step else None)
    notes['checkpoint'] = step

  return save
