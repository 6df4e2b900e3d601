"""What happens between the steps of a group: as `training.hooks`, for each lane in its own run folder.

A lane ends when its steps are taken, its patience is used up, it is pruned, or a number of it is not finite; it then
learns nothing more, and its checkpoints become its own. The others go on.
"""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from aigc_jax import run
from aigc_jax.errors import DataError
from aigc_jax.sweeps import slices
from aigc_jax.training import checkpoint, hooks
from aigc_jax.training.console import Console, clock, count
from aigc_jax.training.loop import FINITE, Hook, fault
from aigc_jax.training.parallel import all_finite
from aigc_jax.training.step import merge_frozen

# how many times what it took to compile a group must be spared to compile one for the lanes that are left
REPACKING = 4


class Lane(NamedTuple):
  """One trial of a group."""

  index: int
  name: str
  config: dict  # complete
  task: Any
  dataset: Any
  folder: run.Run
  writer: run.MetricsWriter
  console: Console  # its log.txt
  costs: list  # as `hooks.judge` has them
  notes: dict

  @property
  def checkpoints(self):
    return self.folder.path / 'checkpoints'


class Ended(NamedTuple):
  state: str  # of `Run.write_status`
  step: int
  message: str


class Group(NamedTuple):
  """A group of lanes that goes on: what its steps and hooks use."""

  stack: Any
  lanes: list  # those that had not ended when this process began
  ended: dict  # {index: Ended}, filled as they end
  settled: set  # indices of those whose folders are in order
  folder: Any  # of the group: checkpoints/ while it runs
  checkpointer: checkpoint.Checkpointer
  console: Console  # of the worker
  notes: dict
  prune: Any  # (lane, step, {name: mean}) -> why it is to stop, or None

  @property
  def going(self):
    return [lane for lane in self.lanes if lane.index not in self.ended]

  @property
  def training(self):
    return self.stack.config['training']

  @property
  def frozen_axis(self):
    return None if self.stack.config['init_from'] else 0


def end(group, lane, state, step, message):
  group.ended[lane.index] = Ended(state, step, message)
  if state != 'done':
    lane.console.say(message)
    group.console.say(f'{lane.name}: {state}: {message}')


def recorder(group, start, unit):
  """`record(step, metrics)` for the loop: each lane's numbers to its folder every `log_every` steps."""
  steps, log_every, notes = group.training['steps'], group.training['log_every'], group.notes
  began = mark = time.perf_counter()
  since, seen = start, np.zeros(group.stack.count)

  def record(step, metrics):
    nonlocal mark, since, seen
    notes['step'] = step
    values = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}  # {name: [lanes]}
    fine = np.isfinite([values[name] for name in FINITE]).all(0)
    seen = seen + values['weight']
    numbers = lambda lane: {name: float(array[lane.index]) for name, array in values.items()}
    for lane in group.going:
      lane.notes['step'] = step
      if not fine[lane.index]:
        end(group, lane, 'non-finite', step, f'step {step}: {fault(numbers(lane))}')
    if step % log_every and step != steps:
      return
    now = time.perf_counter()
    spent = max(now - mark - notes.pop('pause', 0.0), 1e-9)
    clocks = {'time/seconds': now - began, 'time/step_seconds': spent / (step - since)}
    for lane in group.going:
      rate = {f'time/{unit}_per_second': seen[lane.index] / spent}
      lane.writer.write(step, hooks.named(numbers(lane)) | clocks | rate)
    losses = [float(values['loss'][lane.index]) for lane in group.going]
    left = clock((now - began) / (step - start) * (steps - step))
    text = f'step {step}/{steps}  {len(losses)} lanes  {count(seen.sum() / spent)} {unit}/s  ETA {left}'
    group.console.progress(
      step, steps, text + (f'  loss {min(losses):.4f} to {max(losses):.4f}' if losses else '')
    )
    notes['step_seconds'] = clocks['time/step_seconds']
    mark, since, seen = now, step, np.zeros_like(seen)

  return record


def evaluation(group):
  """Evaluates all lanes at once; each is judged alone."""
  batches = group.training['evaluate_batches']

  def call(step, carry):
    began, stack = time.perf_counter(), group.stack
    sums = hooks.evaluation_sums(stack, stack.floats, carry.state, stack.data, batches)
    seconds = time.perf_counter() - began
    for lane in group.going:
      alone(group, lane, step, judge, group, lane, step, jax.tree.map(lambda x: x[lane.index], sums), seconds)

  return Hook(group.training['evaluate_every'], call)


def judge(group, lane, step, sums, seconds):
  found = hooks.means(sums, lane.task.report)
  ends = hooks.judge(
    group.training, lane.task, step, found, seconds, lane.writer, lane.console, lane.costs, lane.notes
  )
  if ends:
    end(group, lane, 'done', step, 'early stop')
  elif why := group.prune(lane, step, found):
    end(group, lane, 'interrupted', step, why)


def alone(group, lane, step, function, *arguments):
  """Calls a function of one lane, which ends that lane alone where it fails."""
  try:
    function(*arguments)
  except DataError as error:
    end(group, lane, 'non-finite', step, str(error))
  except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
    end(group, lane, 'failed', step, f'step {step}: {type(error).__name__}: {error}')


def samples(group):
  """Shows what each lane makes, as its solo run would."""

  def call(step, carry):
    lanes = [lane for lane in group.lanes if ended_at(group, lane, step) and lane.task.show is not None]
    if not lanes:
      return
    for lane in lanes:
      state = group.stack.way.lane(carry.state, lane.index)
      params = merge_frozen(state.params if state.average is None else state.average, state.frozen)
      arguments = lane.task, lane.dataset, params, state.extra, state.key, step, lane.folder.path / 'samples'
      alone(group, lane, step, hooks.show, *arguments, lane.writer, lane.console)

  return Hook(group.training['sample_every'], call)


def ended_at(group, lane, step):
  """Whether a lane goes on, or has ended well at this very step: a run that stops early still shows what it makes."""
  ended = group.ended.get(lane.index)
  return ended is None or (ended.step == step and ended.state in ('done', 'interrupted'))


def saver(group):
  """One stacked checkpoint; at the last step there is none, since `settle` writes those of the trials."""
  finite = jax.jit(all_finite)

  def call(step, carry):
    for lane in group.going:
      state = group.stack.way.lane(carry.state, lane.index)
      if not finite(state._replace(key=None, frozen=None)):
        end(group, lane, 'non-finite', step, f'step {step}: the state holds numbers that are not finite')
    if group.notes.get('checkpoint') == step or not group.going or step == group.training['steps']:
      return
    save(group, step, carry.state)

  return Hook(group.training['checkpoint_every'], call)


def save(group, step, state):
  for lane in group.going:
    lane.writer.flush()
  metrics = [None] * group.stack.count
  for lane in group.going:
    metrics[lane.index] = metric_at(lane, step)
  group.checkpointer.save(step, group.stack.way.together(state), metric=metrics)
  group.notes['checkpoint'] = step


def metric_at(lane, step):
  evaluated, cost = lane.notes.get('validation', (None, None))
  return cost if evaluated == step else None


def settle(group, step, carry):
  """Puts the folders of lanes that have ended in order: their checkpoints, then their status."""
  waiting = [lane for lane in group.lanes if lane.index in group.ended and lane.index not in group.settled]
  if not waiting:
    return
  group.checkpointer.wait()
  keep = group.training['keep_checkpoints']
  good = [lane for lane in waiting if group.ended[lane.index].state in ('done', 'interrupted')]
  bad = [lane for lane in waiting if lane not in good]
  stacked = group.folder / 'checkpoints'
  # what failed while it was shown had been saved
  last = lambda lane: group.ended[lane.index].step - (group.ended[lane.index].state != 'failed')
  hand_over = lambda lanes, final: slices.hand_over(
    stacked, group.frozen_axis, keep, {i.index: (i.checkpoints, last(i)) for i in lanes}, final
  )
  if good:  # (they end only where hooks are called, so that this is the state of the step that they ended at)
    for lane in good:
      lane.writer.flush()
    hand_over(
      good,
      (
        step,
        slices.host_copy(group.stack.way.together(carry.state)),
        {lane.index: metric_at(lane, step) for lane in good},
      ),
    )
  if bad:
    hand_over(bad, None)
  for lane in waiting:
    ended = group.ended[lane.index]
    newest = checkpoint.latest(lane.checkpoints)
    lane.folder.write_status(ended.state, ended.step, checkpoint=newest, message=ended.message)
    lane.writer.close()
    group.settled.add(lane.index)


class Round(NamedTuple):
  """The hooks of a group as one, which settles the lanes that end before and after them."""

  group: Group
  hooks: list

  def due(self, step, last):
    return any(hook.due(step, last) for hook in self.hooks)

  def call(self, step, carry):
    """True where no lane goes on, or those that do are to go on by themselves."""
    group, steps = self.group, self.group.training['steps']
    began = time.perf_counter()
    settle(group, step, carry)
    for hook in self.hooks:
      if hook.due(step, steps):
        hook.call(step, carry)
    if step == steps:
      for lane in group.going:
        end(group, lane, 'done', step, 'done')
    settle(group, step, carry)
    group.notes['pause'] = group.notes.get('pause', 0.0) + time.perf_counter() - began
    if is_worth_repacking(group, step):
      group.notes['repack'] = True
    return not group.going or 'repack' in group.notes


def is_worth_repacking(group, step):
  """Whether the lanes that are left are better off in a program of their own: where all of them have just been saved,
  and the steps that this spares take several times as long as to compile it."""
  going, count, left = len(group.going), group.stack.count, group.training['steps'] - step
  if not group.stack.way.packs or not 0 < going <= count / 2 or group.notes.get('checkpoint') != step:
    return False
  spared = left * group.notes.get('step_seconds', 0.0) * (1 - going / count)
  return spared > REPACKING * group.notes['compile_seconds']


def hooks_of(group):
  """One hook for the loop."""
  return [Round(group, [evaluation(group), saver(group), samples(group)])]


def live_flags(group):
  """[lanes] bool: those that still learn."""
  flags = np.zeros(group.stack.count, bool)
  flags[[lane.index for lane in group.going]] = True
  return flags
