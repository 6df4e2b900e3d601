"""The dry run of a prepared experiment, and the run itself."""

import contextlib
import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import files, run, tasks
from aigc_jax.config import floats_of
from aigc_jax.data import cache
from aigc_jax.errors import AigcError, DataError, Interrupted
from aigc_jax.task import RESIDENT
from aigc_jax.training import checkpoint, hooks, mesh, optimizer, parallel, step
from aigc_jax.training.console import count, size
from aigc_jax.training.loop import Hook, Outcome, loop, signals
from aigc_jax.training.prepare import FACTS, TOKENIZER, find_initial, notes_on

EXTENSIBLE = ('training.steps',)  # what may differ when a run is made longer


def use_compile_cache():
  """Keeps compiled programs between processes, unless the user has set up JAX's cache already."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', str(cache.default_folder() / 'xla'))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)


class Prepared(NamedTuple):
  """An experiment on its devices, not yet compiled."""

  program: parallel.Parallel
  floats: Any
  key: Any
  example: Any  # the first batch: rows on the host, and a data set that lives on the devices there
  resident: Any  # that data set, as every batch has it: {'resident': arrays} or {}
  target: Any  # State of ShapeDtypeStruct with shardings


def place(experiment):
  config = experiment.config
  program = parallel.make_parallel(config, tasks.build, experiment.devices)
  floats, key = program.put_floats(floats_of(config)), jax.random.key(config['seed'])
  resident = program.put_resident(experiment.dataset.resident)
  example = experiment.dataset.train_batch(0) | resident
  shapes = jax.eval_shape(program.init, floats, key, example)
  target = jax.tree.map(lambda leaf, where: leaf.update(sharding=where), shapes, program.shardings(shapes))
  return Prepared(program, floats, key, example, resident, target)


def batch_on_devices(prepared, batch):
  """Host rows -> the whole batch as the step sees it."""
  rows = {name: array for name, array in batch.items() if name != RESIDENT}
  return prepared.program.put_batch(rows) | prepared.resident


def lower_step(prepared, example=None):
  """The train step for the shapes of a batch; compiled ahead of time, so that another shape is an error."""
  batch = batch_on_devices(prepared, prepared.example if example is None else example)
  return prepared.program.step.lower(prepared.floats, prepared.target, batch)


def shape_of(batch):
  return tuple(sorted((name, array.shape) for name, array in batch.items() if name != RESIDENT))


def compile_steps(experiment, prepared):
  """({shape of a batch: compiled train step}, FLOPs of a step or None): all compilations of training, at once."""
  examples = experiment.dataset.shapes() if experiment.dataset.shapes else [prepared.example]
  lowered = {shape_of(example): lower_step(prepared, example) for example in examples}
  compiled = {shape: step.compile() for shape, step in lowered.items()}
  one = next(iter(lowered.values()))
  # with several shapes a step's work differs from the next one's
  return compiled, flops_of(one, experiment, prepared) if len(lowered) == 1 else None


def flops_of(lowered, experiment, prepared):
  """Floating-point operations of a step on all devices together, as XLA counts them, or None."""
  config = experiment.config
  training, places = config['training'], config['parallel']
  # XLA counts a loop's body and one device's part once.
  if training['microbatches'] > 1 or places['mode'] == 'pmap':
    whole = {'training': training | {'microbatches': 1}, 'parallel': places | {'mode': 'mesh'}}
    program = parallel.make_parallel(config | whole, tasks.build, experiment.devices)
    lowered = lower_step(prepared._replace(program=program))
  found = lowered.cost_analysis()
  return (found or {}).get('flops')


def parameter_table(state):
  """Lines of path, shape and count."""
  rows = [(path, leaf, '') for path, leaf in checkpoint.flat(state.params).items()]
  rows += [(path, leaf, '  frozen') for path, leaf in checkpoint.flat(state.frozen).items()]
  total = lambda mark: sum(leaf.size for _, leaf, m in rows if m in mark)
  lines = [f'{"parameter":<44}{"shape":<20}{"count":>12}']
  lines += [f'{path:<44}{list(leaf.shape)!s:<20}{leaf.size:>12,}{mark}' for path, leaf, mark in rows]
  lines += [f'{"all":<64}{total(("", "  frozen")):>12,}']
  return lines + ([f'{"trained":<64}{total(("",)):>12,}'] if state.frozen is not None else [])


def dry_run(experiment):
  """The parameter table, memory and FLOPs of the compiled step, as text; takes no step."""
  prepared, config = place(experiment), experiment.config
  began = time.perf_counter()
  lowered = lower_step(prepared)
  memory = lowered.compile().memory_analysis()
  seconds, flops = time.perf_counter() - began, flops_of(lowered, experiment, prepared)
  rows, steps = config['data']['batch_size'], config['training']['steps']
  lines = [*parameter_table(prepared.target), '']
  lines += [f'{name.replace("_", " "):<24}{value}' for name, value in experiment.dataset.facts.items()]
  lines += [
    f'{"devices":<24}{describe_devices(prepared.program)}',
    f'{"a step":<24}{shapes_of(prepared.example)}',
    f'{"in all":<24}{steps:,} steps of {rows:,} rows{epochs_of(experiment)}',
    f'{"compiled in":<24}{seconds:.1f} s',
    f'{"FLOPs a step":<24}{count(flops) if flops else "unknown"}',
    f'{"memory of a step":<24}{size(memory.argument_size_in_bytes)} arguments, '
    f'{size(memory.temp_size_in_bytes)} temporaries, {size(memory.output_size_in_bytes)} outputs, '
    f'{size(memory.alias_size_in_bytes)} of them in the place of arguments',
  ]
  return '\n'.join(lines + notes_on(config))


def epochs_of(experiment):
  each = experiment.dataset.facts['steps_per_epoch']  # None where the data has no end
  return f', {experiment.config["training"]["steps"] / each:.1f} epochs' if each else ''


def shapes_of(batch):
  return ', '.join(f'{name} {list(array.shape)}' for name, array in batch.items() if name != RESIDENT)


def describe_devices(program):
  devices = list(program.mesh.devices.flat)
  axes = f', {mesh.described(program.mesh)}' if len(devices) > 1 else ''
  return f'{len(devices)} of {len(jax.devices())} {devices[0].device_kind}{axes}'


def with_initial_params(state, config, target):
  """The State with the parameters that `config.init_from` names, the frozen ones included."""
  initial = find_initial(config['init_from'])
  _, params, _ = checkpoint.restore_params(initial.checkpoints, initial.which, initial.kept)
  loaded = step.split_frozen(params, config['training']['freeze'])
  places = jax.tree.map(lambda leaf: leaf.sharding, (target.params, target.frozen))
  params, frozen = jax.device_put(loaded, places)
  average = None if state.average is None else jax.tree.map(jnp.copy, params)
  return state._replace(params=params, frozen=frozen, average=average)


def restored_state(prepared, folder, console):
  """(State, step) of the newest good checkpoint, or (None, 0)."""
  checkpoints = folder.path / 'checkpoints'
  if not checkpoint.steps(checkpoints):
    return None, 0
  at, state = checkpoint.restore(checkpoints, prepared.target, 'latest', console.say)
  return state, at


def first_state(prepared, config, console):
  """The State before any step."""
  state = prepared.program.init(prepared.floats, prepared.key, prepared.example)
  if config['init_from']:
    state = with_initial_params(state, config, prepared.target)
    console.say(f'starting from the parameters of {config["init_from"]}')
  return state


def learns_after(at, config):
  """Whether the schedule of the learning rate is above 0 for the step after step `at`."""
  return float(optimizer.unit_schedule(config['optimizer'], config['training']['steps'], at)) > 0


def train(experiment, folder, console, began):
  """Trains in a run folder that the caller holds open, from where it is to `config.training.steps`.

  Args:
    experiment: from `prepare`. folder: run.Run. console: where lines go.
    began: `time.perf_counter()` when the user's command started, for the time to the first step.

  Raises:
    DataError: numbers are not finite. Interrupted: by a signal, after saving. UsageError: the checkpoint is of
      another shape; then no step was taken.
  """
  config, dataset = experiment.config, experiment.dataset
  prepared = place(experiment)
  state, start = restored_state(prepared, folder, console)
  announce(experiment, prepared, folder, console, start)
  make_ready(folder, dataset, experiment.devices)
  if state is None:
    state = first_state(prepared, config, console)
  with (
    run.MetricsWriter(
      folder.path, tensorboard_files=config['training']['tensorboard'], resumed_from=start if start else None
    ) as writer,
    checkpoint.Checkpointer(
      folder.path / 'checkpoints', keep=config['training']['keep_checkpoints'], resumed_from=start
    ) as checkpointer,
  ):
    return take_steps(experiment, prepared, folder, console, state, start, writer, checkpointer, began)


def make_ready(folder, dataset, devices):
  """Writes into the run folder what it needs besides its config."""
  if not (folder.path / FACTS).exists():
    files.write_json(folder.path / FACTS, dataset.facts)
  if dataset.tokenizer is not None and not (folder.path / TOKENIZER).exists():
    dataset.tokenizer.save(folder.path / TOKENIZER)
  for name in ('samples', 'plots'):
    with files.storage_errors(folder.path / name):
      (folder.path / name).mkdir(exist_ok=True)
  folder.record_environment(devices)


def announce(experiment, prepared, folder, console, start):
  config, facts = experiment.config, experiment.dataset.facts
  leaves = jax.tree.leaves((prepared.target.params, prepared.target.frozen))
  console.say(f'run folder: {folder.path}')
  console.say(f'data: {facts["source"]}, {facts["size"]}; {facts["split"]}')
  console.say(
    f'model: {config["model"]["name"]}, {sum(leaf.size for leaf in leaves):,} parameters; '
    f'devices: {describe_devices(prepared.program)} ({config["parallel"]["mode"]})'
  )
  for line in notes_on(config):
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


def take_steps(experiment, prepared, folder, console, state, start, writer, checkpointer, began):
  config, dataset, task, devices = experiment
  training, program, notes = config['training'], prepared.program, {'checkpoint': start or None}
  metric = training['best_metric']
  costs = [hooks.cost(task, metric, row[metric]) for row in run.read_metrics(folder.path) if metric in row]
  if hooks.used_up(training['patience'], costs):  # killed when it had ended and had not yet said so
    console.say(
      f'{metric} had not improved for {training["patience"]} evaluations by step {start}: the run has ended'
    )
    folder.write_status('done', start, checkpoint=start, message='early stop')
    return Outcome(state, start, 'early stop')
  compile_began = time.perf_counter()
  compiled, flops = compile_steps(experiment, prepared)
  now = time.perf_counter()
  programs = f' {len(compiled)} programs, one for each shape of a batch,' if len(compiled) > 1 else ''
  console.say(
    f'compiled{programs} in {now - compile_began:.1f} s; first step {now - began:.1f} s after the start'
  )
  save = hooks.saver(checkpointer, writer, notes)
  interval = [
    hooks.evaluation(config, program, prepared.floats, dataset, task, writer, console, costs, notes),
    Hook(training['checkpoint_every'], save),  # before what is only shown, whatever happens to that
    hooks.samples(config, dataset, task, folder.path / 'samples', writer, console),
  ]
  interval = [hooks.timed(hook, notes) for hook in interval]
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
    saved=lambda: checkpointer.newest,
  )
  folder.write_status('running', start, checkpoint=notes['checkpoint'])
  step_function = lambda state, batch: compiled[shape_of(batch)](prepared.floats, state, batch)
  batch_at = lambda n: batch_on_devices(prepared, dataset.train_batch(n))
  console.start(start, training['steps'])
  try:
    with signals() as interrupted:
      outcome = loop(step_function, state, batch_at, start, training['steps'], record, interval, interrupted)
      save(outcome.step, outcome.state)
      checkpointer.wait()
  except AigcError as error:
    end_badly(folder, checkpointer, notes, error)
  finally:
    console.stop()
  states = {'done': 'done', 'early stop': 'done', 'interrupted': 'interrupted'}
  folder.write_status(states[outcome.reason], outcome.step, checkpoint=outcome.step, message=outcome.reason)
  if outcome.reason == 'interrupted':
    raise Interrupted(f'interrupted after step {outcome.step}, saved; go on by `aigc resume {folder.path}`')
  return outcome


def end_badly(folder, checkpointer, notes, error):
  """Leaves the folder with what is good, and raises the error with the checkpoint to go back to."""
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


def loss_curve(folder, unit):
  """Draws plots/loss.png: training loss and its validation values over steps. Returns the path.

  unit: what the loss is a mean of, such as 'tokens'.
  """
  from matplotlib.figure import Figure  # (pyplot would look for a display)

  rows = run.read_metrics(folder)
  figure = Figure(figsize=(7, 4.2), layout='constrained')
  axes = figure.add_subplot()
  for name, style in (('train/loss', dict(linewidth=0.8, alpha=0.7)), ('validation/loss', dict(marker='o'))):
    points = np.array([(row['step'], row[name]) for row in rows if name in row], float).reshape(-1, 2)
    axes.plot(*points.T, label=name, **style)
  axes.set(
    xlabel='step',
    ylabel=f'loss (nats per {unit.removesuffix("s")})',
    title=os.path.basename(os.path.abspath(folder)),
  )
  axes.grid(alpha=0.3)
  axes.legend()
  path = os.path.join(folder, 'plots', 'loss.png')
  with files.storage_errors(path):
    figure.savefig(path, dpi=120)
  return path
