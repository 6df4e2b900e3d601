"""A group of trials as lanes of one program: the one loop over stacked states, and a run folder for each trial.

While it runs the group saves one stacked checkpoint at a time, in groups/NAME/checkpoints; lanes that end get their
own, cut out of those. A group that was killed goes on from the stacked one; where its trials are grouped in another way
then, they go on from their own, which `release` makes.
"""

import contextlib
import functools
import hashlib
import json
import resource
import shutil
import time
from typing import Any, NamedTuple

import jax

from aigc_jax import files, run, tasks
from aigc_jax.config import floats_of, with_floats
from aigc_jax.environment import environment
from aigc_jax.errors import AigcError, Interrupted
from aigc_jax.schemas import resolved
from aigc_jax.sweeps import lane_hooks, slices, stack
from aigc_jax.sweeps.folder import has_ended
from aigc_jax.training import attention, checkpoint, experiment, hooks, memory_use, placement, prepare
from aigc_jax.training.console import Console, size
from aigc_jax.training.loop import loop, signals

GROUPS, MEMBERS = 'groups', 'group.json'
FILES_OF_A_LANE = 8  # that are open while it runs


class Plan(NamedTuple):
  """A group prepared and compiled, before anything is written."""

  experiment: Any  # of the first trial
  configs: list  # complete, of each trial
  stack: stack.Stack
  compiled: dict  # {shape of a batch: step}
  peak: int  # bytes on a device
  seconds: float  # that it took to place and compile


class Apart(Exception):
  """Trials cannot run as one group, and nothing was done; so many `lanes` at a time can."""

  def __init__(self, why, lanes):
    super().__init__(why)
    self.lanes = lanes


def group_name(trials):
  return hashlib.sha256(' '.join(trial.name for trial in trials).encode()).hexdigest()[:10]


def complete_configs(first, trials):
  """The complete config of each trial of a group, given that of the first."""
  floats = floats_of(first)
  made = []
  for trial in trials:
    config = with_floats(first, floats | floats_of(trial.config))
    data = (
      config['data'] | {'seed': trial.config['data']['seed']} if 'seed' in config['data'] else config['data']
    )
    made.append(config | {'seed': trial.config['seed'], 'data': data})
  return made


def plan(folder, trials, share=1, devices=None):
  """The Plan of a group. Raises UsageError for what is wrong with its config, Apart where it takes too much memory.

  Args:
    folder: of the sweep. share: workers that share this machine's memory. devices: to use; None: those of this process
      that `config.parallel.data` asks for.
  """
  begun = folder / trials[0].name
  known = run.open_run(begun) if (begun / run.CONFIG).exists() else None
  first = prepare.prepare(trials[0].config, known)
  configs = complete_configs(first.config, trials)
  by_seed = {configs[0]['data'].get('seed'): first.dataset}
  for config in configs:
    if config['data'].get('seed') not in by_seed:
      by_seed[config['data'].get('seed')] = prepare.prepare(config, known).dataset
  wanted = configs[0]['parallel']['data']
  devices = devices or jax.local_devices()[: None if wanted == -1 else wanted]
  datasets = [by_seed[config['data'].get('seed')] for config in configs]
  began = time.perf_counter()
  stacked = stack.place(configs, datasets, devices)
  check_memory(memory_use.bytes_of(stacked.target), stacked, len(trials), share)
  compiled, peak = stack.compile_steps(stacked)
  check_memory(peak, stacked, len(trials), share)
  return Plan(first, configs, stacked, compiled, peak, time.perf_counter() - began)


def check_memory(octets, stacked, count, share):
  """Raises Apart where lanes that take so many bytes on each device do not fit."""
  devices = list(stacked.mesh.devices.flat)
  limit = memory_use.capacity(devices)
  if limit is not None and devices[0].platform == 'cpu':
    limit //= share
  if limit is not None and octets > limit and count > 1:
    fit = max(1, min(count - 1, int(count * limit / octets)))
    raise Apart(f'need {size(octets)} of the {size(limit)} on a device; {fit} run at a time', fit)


def release(folder, trials):
  """Makes the stacked checkpoints of groups that ran before, and had other members, into the trials' own."""
  names, own = {trial.name for trial in trials}, group_name(trials)
  for place in sorted((folder / GROUPS).glob(f'*/{MEMBERS}')):
    members = files.read_json(place)['trials']
    if place.parent.name == own or not names & set(members):
      continue
    checkpoints = place.parent / 'checkpoints'
    if checkpoint.steps(checkpoints):
      hand_back(folder, members, checkpoints, files.read_json(place)['frozen'])
    shutil.rmtree(checkpoints, ignore_errors=True)
    place.unlink()


def hand_back(folder, members, checkpoints, frozen):
  """Cuts the stacked checkpoints of a group that was stopped into those of its trials that have not ended."""
  lanes = {
    index: (folder / name / 'checkpoints', None)
    for index, name in enumerate(members)
    if (folder / name / run.CONFIG).exists() and not has_ended(folder / name)
  }
  if lanes:
    keep = run.open_run(folder / members[min(lanes)]).config['training']['keep_checkpoints']
    slices.hand_over(checkpoints, frozen, keep, lanes)


def run_lanes(folder, trials, console, share=1, prune=lambda lane, step, found: None):
  """Runs trials to their ends as lanes of one program, from where they are.

  Args:
    folder: of the sweep; each trial has its run folder there.
    trials: of one structure. console: of this process. share: workers that share this machine's memory.
    prune: (lane, step, {name: mean}) -> why the lane is to stop, or None.

  Raises:
    Apart: nothing was done. Interrupted: by a signal, after saving. AigcError: of all lanes, such as a full disk.
  """
  began = time.perf_counter()
  release(folder, trials)
  made = plan(folder, trials, share)
  place = folder / GROUPS / group_name(trials)
  with files.storage_errors(place):
    place.mkdir(parents=True, exist_ok=True)
  frozen = None if made.stack.config['init_from'] else 0
  files.write_json(place / MEMBERS, {'trials': [trial.name for trial in trials], 'frozen': frozen})
  ended = {i: lane_hooks.Ended('done', 0, '') for i, t in enumerate(trials) if has_ended(folder / t.name)}
  keep = made.stack.config['training']['keep_checkpoints']
  stacked = place / 'checkpoints'
  state, start = restored(made, folder, trials, stacked, console)
  with contextlib.ExitStack() as opened:
    lanes = open_lanes(opened, folder, trials, made, ended, start)
    checkpointer = opened.enter_context(
      checkpoint.Checkpointer(stacked, keep=keep, resumed_from=start, best=slices.best_of_each)
    )
    notes = {'checkpoint': start or None, 'compile_seconds': made.seconds}
    group = lane_hooks.Group(made.stack, lanes, ended, set(ended), place, checkpointer, console, notes, prune)
    announce(group, made, start, began)
    take_steps(group, made, state, start)
  if 'repack' in notes:
    left = [trial for trial in trials if not has_ended(folder / trial.name)]
    console.say(f'{len(left)} of {len(trials)} lanes go on by themselves')
    return run_lanes(folder, left, console, share, prune)
  shutil.rmtree(stacked, ignore_errors=True)
  (place / MEMBERS).unlink()


def restored(made, folder, trials, stacked, console):
  """(stacked State, step) to go on from: the group's newest checkpoint, else the trials' own ones, else the first."""
  if checkpoint.steps(stacked):
    step, state = checkpoint.restore(stacked, made.stack.target, 'latest', console.say)
    return made.stack.way.apart(state), step
  folders = [folder / trial.name / 'checkpoints' for trial in trials]
  frozen = None if made.stack.config['init_from'] else 0
  if not any(map(checkpoint.steps, folders)):
    return stack.first_state(made.stack), 0
  found = slices.gather(folders, made.stack.target, frozen, made.stack.count)
  if found is None:
    raise Apart('have no whole checkpoints of one step; they run one by one', 1)
  return made.stack.way.apart(found[1]), found[0]


def open_lanes(opened, folder, trials, made, ended, start):
  """[Lane] of the trials that have not ended, their run folders made and held."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  wanted = soft + FILES_OF_A_LANE * len(trials)
  resource.setrlimit(
    resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
  )
  lanes, found = [], environment(made.stack.mesh.devices.flat) | {'lanes': len(trials)}
  task_of = functools.lru_cache(None)(lambda text: tasks.build(attention.portable(json.loads(text))))
  for index, (trial, config) in enumerate(zip(trials, made.configs, strict=True)):
    if index in ended:
      continue
    dataset = made.stack.data.datasets[index]
    held = opened.enter_context(run.create(folder / trial.name, config, upgrade=resolved))
    experiment.make_ready(held, dataset, found)
    writer = opened.enter_context(experiment.metrics_writer(config, held, start))
    console = opened.enter_context(Console(held.path / 'log.txt', quiet=True))
    # lanes whose optimizers alone differ show what they make by the same compiled functions
    task = task_of(json.dumps(config | {'seed': 0, 'optimizer': made.configs[0]['optimizer']}))
    metric = config['training']['best_metric']
    costs = [hooks.cost(task, metric, row[metric]) for row in run.read_metrics(held.path) if metric in row]
    lanes.append(lane_hooks.Lane(index, trial.name, config, task, dataset, held, writer, console, costs, {}))
    held.write_status('running', start, checkpoint=start or None)
  return lanes


def announce(group, made, start, began):
  facts, config = made.experiment.dataset.facts, made.stack.config
  leaves = jax.tree.leaves((made.stack.target.params, made.stack.target.frozen))
  numbers = sum(leaf.size for leaf in leaves) // (group.stack.count if group.frozen_axis == 0 else 1)
  devices = list(made.stack.mesh.devices.flat)
  line = f'{len(group.lanes)} lanes of one program on {len(devices)} {devices[0].device_kind}'
  group.console.say(f'{line}, compiled in {time.perf_counter() - began:.1f} s after the start')
  for lane in group.lanes:
    lane.console.say(f'run folder: {lane.folder.path}')
    lane.console.say(f'data: {facts["source"]}, {facts["size"]}; {facts["split"]}')
    lane.console.say(f'model: {config["model"]["name"]}, {numbers:,} parameters; lane {lane.index} of {line}')
    if start:
      lane.console.say(f'resuming after step {start}')


def take_steps(group, made, state, start):
  """Takes the steps of the lanes from `start` on. Leaves every folder in order, and raises what ended them all."""
  steps, stacked = group.training['steps'], made.stack
  carry = stacked.way.first(state)
  record = lane_hooks.recorder(group, start, made.experiment.task.unit)
  batch_at = lambda at: stack.batch_at(stacked, at)
  group.console.start(start, steps)
  try:
    with signals() as interrupted:
      stepped = step_function(group, made.compiled)
      outcome = loop(stepped, carry, batch_at, start, steps, record, lane_hooks.hooks_of(group), interrupted)
      if outcome.reason == 'interrupted':
        lane_hooks.settle(group, outcome.step, outcome.state)
        lane_hooks.save(group, outcome.step, outcome.state.state)
        group.checkpointer.wait()
  except AigcError as error:
    for lane in group.going:
      with contextlib.suppress(AigcError):  # on a full disk; the error itself is what people must see
        lane.folder.write_status('failed', lane.notes.get('step', start), message=str(error))
    raise
  finally:
    group.console.stop()
  if outcome.reason == 'interrupted':
    for lane in group.going:
      lane.folder.write_status('interrupted', outcome.step, checkpoint=None, message='interrupted')
    raise Interrupted(f'interrupted after step {outcome.step}, saved')


def step_function(group, compiled):
  """carry, batch -> carry, metrics: by the program for the batch's shape, told which lanes are to go on."""
  stacked, told, flags = group.stack, None, None

  def step(carry, batch):
    nonlocal told, flags
    if told != len(group.ended):
      told, flags = len(group.ended), stacked.way.flags(lane_hooks.live_flags(group))
    # a batch of lanes has the shape that `compile_steps` saw
    return compiled[placement.shape_of(batch)](carry, batch, flags)

  return step
