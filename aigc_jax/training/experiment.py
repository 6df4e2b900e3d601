"""The run of a prepared experiment, in its folder."""

import contextlib
import itertools
import os
import pathlib
import shutil
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import files, memory, own_code, run
from aigc_jax.data import cache
from aigc_jax.environment import environment
from aigc_jax.errors import AigcError, DataError, Interrupted, StorageError, UsageError
from aigc_jax.training import (
  checkpoint,
  hooks,
  initials,
  memory_use,
  optimizer,
  placement,
  processes,
  profiling,
  step,
)
from aigc_jax.training.loop import Hook, Outcome, loop, of_each, signals
from aigc_jax.training.prepare import FACTS, TOKENIZER, notes_on

EXTENSIBLE = ('training.steps',)  # what may differ when a run is made longer


def set_up():
  """What every verb that computes begins with: how this process keeps memory, and compiled programs between processes.

  A user's own setting of JAX's cache stays.
  """
  memory.keep_freed_memory()
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', str(cache.default_folder() / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


def restored_state(prepared, folder, console):
  """(State, step) of the newest good checkpoint, or (None, 0)."""
  checkpoints = folder.path / 'checkpoints'
  if not processes.agree(lambda: checkpoint.steps(checkpoints)):
    return None, 0
  at, state = checkpoint.restore(checkpoints, prepared.target, 'latest', console.say)
  return state, at


def first_state(prepared, config, console):
  """The State before any step."""
  state = prepared.program.init(prepared.floats, prepared.key, prepared.example)
  if config['init_from']:
    initial = initials.find(config['init_from'])
    console.say(initials.told(initial, step.merge_frozen(state.params, state.frozen)))
    params, frozen = initials.overlay((state.params, state.frozen), initial)
    average = None if state.average is None else jax.tree.map(jnp.copy, params)
    state = state._replace(params=params, frozen=frozen, average=average)
  return state


def learns_after(at, config):
  """Whether the schedule of the learning rate is above 0 for the step after step `at`."""
  return float(optimizer.unit_schedule(config['optimizer'], config['training']['steps'], at)) > 0


def train(experiment, folder, console, began, traced=None):
  """Trains in a run folder that the caller holds open, from where it is to `config.training.steps`.

  Args:
    experiment: from `prepare`. folder: run.Run; in all but the first of several processes, run.Follower. console: where
      lines go.
    began: `time.perf_counter()` when the user's command started, for the time to the first step.
    traced: (first, last) of the steps whose trace is written; None: none.

  Raises:
    DataError: numbers are not finite. Interrupted: by a signal, after saving. UsageError: the checkpoint is of
      another shape; then no step was taken.
  """
  config, dataset = experiment.config, experiment.dataset
  prepared = placement.place(experiment)
  memory_use.check_state(prepared.target, experiment.devices)  # before there is one
  state, start = restored_state(prepared, folder, console)
  announce(experiment, prepared, folder, console, start)
  if processes.leads():
    make_ready(folder, dataset, environment(experiment.devices))
  with (
    metrics_writer(config, folder, start) as writer,
    checkpoint.Checkpointer(
      folder.path / 'checkpoints', keep=config['training']['keep_checkpoints'], resumed_from=start
    ) as checkpointer,
  ):
    run_here = Here(experiment, prepared, folder, console, writer, checkpointer, traced)
    return take_steps(run_here, state, start, began)


def metrics_writer(config, folder, start):
  if not processes.leads():
    return run.NoMetricsWriter()
  tensorboard, resumed_from = config['training']['tensorboard'], start if start else None
  return run.MetricsWriter(folder.path, tensorboard_files=tensorboard, resumed_from=resumed_from)


@contextlib.contextmanager
def nothing_left(workdir):
  """Around the making of a run folder: a new one is taken away again where UsageError ends the run before a step.

  So that the next try, in the same folder, is not one of another config. Yields a function that is told the run.Run.
  """
  path, made = pathlib.Path(workdir or 'runs').absolute(), []
  there = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
  new = workdir is None or not os.path.exists(path / run.CONFIG)
  try:
    yield lambda folder: made.append(folder) or folder
  except UsageError:
    if made and new and not run.read_metrics(made[0].path):
      path = made[0].path.absolute()
      shutil.rmtree(path, ignore_errors=True)
      if path == there:
        path.mkdir()
      with contextlib.suppress(OSError):  # another run is there
        for folder in itertools.takewhile(lambda folder: folder not in (there, *there.parents), path.parents):
          folder.rmdir()
    raise


def make_ready(folder, dataset, found):
  """Writes into the run folder what it needs besides its config; `found`: how this start finds the machine."""
  if not (folder.path / FACTS).exists():
    files.write_json(folder.path / FACTS, dataset.facts)
  if dataset.tokenizer is not None and not (folder.path / TOKENIZER).exists():
    dataset.tokenizer.save(folder.path / TOKENIZER)
  for name in ('samples', 'plots'):
    with files.storage_errors(folder.path / name):
      (folder.path / name).mkdir(exist_ok=True)
  folder.record_environment(found)


def announce(experiment, prepared, folder, console, start):
  config, facts = experiment.config, experiment.dataset.facts
  leaves = jax.tree.leaves((prepared.target.params, prepared.target.frozen))
  console.say(f'run folder: {folder.path}')
  console.say(f'data: {facts["source"]}, {facts["size"]}; {facts["split"]}')
  console.say(
    f'model: {config["model"]["name"]}, {sum(leaf.size for leaf in leaves):,} parameters; '
    f'devices: {placement.describe_devices(prepared.program)} ({config["parallel"]["mode"]})'
  )
  if prepared.attention is not None:
    console.say(f'attention: {prepared.attention.line}')
  for line in [*placement.notes_on(prepared, config), *notes_on(config)]:
    console.say(line)
  if start:
    console.say(f'resuming after step {start}')
    warn_of_devices(config, folder, experiment.devices, console)
  if 0 < start < config['training']['steps'] and not learns_after(start, config):
    console.say(
      f'WARNING: the learning rate has decayed to 0 by step {start}, so further steps change nothing; to train on, '
      f'start a new run with --config.init_from={folder.path}'
    )


def warn_of_devices(config, folder, devices, console):
  """Tells where a run goes on with another number of devices, and what that does to its numbers."""
  file = folder.path / run.ENVIRONMENT
  before = len(files.read_json(file)[-1]['devices']) if file.exists() else len(devices)
  if before == len(devices):
    return
  what = 'draws other noise and adds' if config['parallel']['mode'] == 'pmap' else 'adds'
  console.say(
    f'WARNING: the run goes on with {len(devices)} devices after {before}: it {what} in another order, '
    'so it will not be bit for bit what it would have been'
  )


class Here(NamedTuple):
  """A run that goes on: what its steps and hooks use."""

  experiment: Any
  prepared: placement.Prepared
  folder: run.Run | run.Follower
  console: Any
  writer: run.MetricsWriter | run.NoMetricsWriter
  checkpointer: checkpoint.Checkpointer
  traced: tuple | None  # (first, last) of the steps whose trace is written


def take_steps(here, state, start, began):
  """Takes the steps from `start` on and leaves the folder in order. `state`: None: the first. Returns the Outcome."""
  config, dataset, task, _ = here.experiment
  folder, console = here.folder, here.console
  steps, patience, metric = (config['training'][name] for name in ('steps', 'patience', 'best_metric'))
  notes = {'checkpoint': start or None}
  found = processes.agree(lambda: [row[metric] for row in run.read_metrics(folder.path) if metric in row])
  costs = [hooks.cost(task, metric, value) for value in found]
  if hooks.used_up(patience, costs):  # killed when it had ended and had not yet said so
    console.say(f'{metric} had not improved for {patience} evaluations by step {start}: the run has ended')
    folder.write_status('done', start, checkpoint=start, message='early stop')
    return Outcome(state, start, 'early stop')
  compiled, state, flops = ready(here, state, began)
  record, save, interval = make_hooks(here, start, flops, costs, notes)
  folder.write_status('running', start, checkpoint=notes['checkpoint'])
  step_function = placement.step_function(here.prepared, compiled)
  stride = config['training']['steps_per_call']
  batch_at = lambda n: placement.batches_on_devices(here.prepared, dataset, n, stride)
  traced = profiling.traced(
    step_function, start, here.traced, folder.path / profiling.FOLDER, console, stride
  )
  console.start(start, steps)
  try:
    with signals() as interrupted, traced as step_function:
      record = of_each(record, stride)
      outcome = loop(step_function, state, batch_at, start, steps, record, interval, interrupted, stride)
      save(outcome.step, outcome.state)
      here.checkpointer.wait()
  except AigcError as error:
    end_badly(folder, here.checkpointer, notes, error)
  finally:
    console.stop()
  states = {'done': 'done', 'early stop': 'done', 'interrupted': 'interrupted'}
  folder.write_status(states[outcome.reason], outcome.step, checkpoint=outcome.step, message=outcome.reason)
  if outcome.reason == 'interrupted':
    command = f'aigc resume {folder.path}{own_code.flag(config)}'
    raise Interrupted(f'interrupted after step {outcome.step}, saved; go on by `{command}`')
  return outcome


def ready(here, state, began):
  """(compiled steps, State, FLOPs of a step); a first state is made when it is known that a step fits its devices.

  Raises UsageError where it does not.
  """
  compile_began = time.perf_counter()
  compiled, flops = placement.compile_calls(here.experiment, here.prepared)
  for program in compiled.values():
    memory_use.check(memory_use.of_program(program), here.experiment.devices)
  compile_ended = time.perf_counter()
  if state is None:
    state = first_state(here.prepared, here.experiment.config, here.console)
  processes.wait_for_all(
    'ready'
  )  # on CPUs, devices that exchange for the first time wait 30 s for each other
  programs = f' {len(compiled)} programs, one for each shape of a batch,' if len(compiled) > 1 else ''
  here.console.say(
    f'compiled{programs} in {compile_ended - compile_began:.1f} s; first step {time.perf_counter() - began:.1f} s '
    'after the start'
  )
  return compiled, state, flops


def make_hooks(here, start, flops, costs, notes):
  """(record, save, [Hook]) for the loop; `costs` and `notes` are as `hooks` has them."""
  (config, dataset, task, devices), training = here.experiment, here.experiment.config['training']
  writer, console, program, floats = here.writer, here.console, here.prepared.program, here.prepared.floats
  save = hooks.saver(here.checkpointer, writer, notes)
  interval = [
    hooks.evaluation(config, program, floats, dataset, task, writer, console, costs, notes),
    Hook(training['checkpoint_every'], save),  # before what is only shown, whatever happens to that
    hooks.samples(config, program, dataset, task, here.folder.path / 'samples', writer, console),
  ]
  record = hooks.recorder(
    writer,
    console,
    start=start,
    steps=training['steps'],
    log_every=training['log_every'],
    unit=task.unit,
    flops=flops,
    devices=devices,
    notes=notes,
    saved=lambda: here.checkpointer.newest,
  )
  return record, save, [hooks.timed(hook, notes) for hook in interval]


def end_badly(folder, checkpointer, notes, error):
  """Leaves the folder with what is good, and raises the error with the checkpoint to go back to."""
  if isinstance(error, StorageError):
    processes.wait_for_verdict()  # a checkpoint fails, too, where another process that writes it has died
  with contextlib.suppress(AigcError):
    checkpointer.wait()
  last = checkpoint.latest(folder.path / 'checkpoints')
  state = 'non-finite' if isinstance(error, DataError) else 'failed'
  with contextlib.suppress(AigcError):  # on a full disk; the error itself is what people must see
    folder.write_status(state, notes.get('step', last or 0), checkpoint=last, message=str(error))
  good = (
    f'the last good checkpoint is {folder.path}/checkpoints/{last}' if last else 'there is no checkpoint yet'
  )
  raise type(error)(f'{error}; {good}') from error


def draw_curves(folder, task, metric):
  """Draws plots/loss.png: training loss and its validation values over steps, and beside them `metric`, if another.

  metric: `config.training.best_metric`. Returns the path.
  """
  from matplotlib.figure import Figure  # (pyplot would look for a display)

  rows, other = run.read_metrics(folder), metric.partition('/')[2]
  names = ['loss'] if other == 'loss' else ['loss', other]
  figure = Figure(figsize=(7 * len(names), 4.2), layout='constrained')
  for name, axes in zip(names, figure.subplots(1, len(names), squeeze=False)[0], strict=True):
    for part, style in (('train', dict(linewidth=0.8, alpha=0.7)), ('validation', dict(marker='o'))):
      key = f'{part}/{name}'
      points = np.array([(row['step'], row[key]) for row in rows if key in row], float).reshape(-1, 2)
      if len(points):
        axes.plot(*points.T, label=key, **style)
    label = (
      f'loss ({task.loss_unit} per {task.unit.removesuffix("s")})'
      if name == 'loss'
      else name.replace('_', ' ')
    )
    axes.set(xlabel='step', ylabel=label)
    axes.grid(alpha=0.3)
    axes.legend()
  figure.suptitle(os.path.basename(os.path.abspath(folder)))
  path = os.path.join(folder, 'plots', 'loss.png')
  with files.storage_errors(path):
    figure.savefig(path, dpi=120)
  return path
