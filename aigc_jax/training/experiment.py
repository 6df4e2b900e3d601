"""One experiment from its resolved config: everything checked first, then the dry run or the run itself."""

import contextlib
import os
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from aigc_jax import data, files, models, run, tasks
from aigc_jax.config import floats_of
from aigc_jax.data import cache
from aigc_jax.errors import AigcError, DataError, Interrupted, UsageError, listed, nearest
from aigc_jax.task import Task
from aigc_jax.training import checkpoint, hooks, optimizer, parallel, step
from aigc_jax.training.console import count, size
from aigc_jax.training.loop import Hook, Outcome, loop, signals

FACTS = 'data.json'  # in the run folder: what the data was when the run began
EXTENSIBLE = ('training.steps',)  # what may differ when a run is made longer


class Experiment(NamedTuple):
  config: dict  # complete
  dataset: Any
  task: Task  # built with the config's own floats: for what is not traced


def prepare(config, tokenizer=None, resumes=False):
  """Loads the data and finds everything that can be wrong, before anything is compiled or written.

  `resumes`: the parameters come from the run's own checkpoint, so what `init_from` names may be gone.
  """
  decay_steps = config['optimizer']['decay_steps'] or config['training']['steps']
  config = config | {'optimizer': config['optimizer'] | {'decay_steps': decay_steps}}
  if config['model']['name'] in models.SCHEMAS:
    models.check(config['model'])
  config = config | {
    'data': config['data'] | {k: absolute(config['data'][k]) for k in ('source', 'validation_source')}
  }
  dataset = data.load(config['data'], tokenizer)
  config = tasks.complete(config, dataset)
  task = tasks.build(config)
  step.check(config, task)
  parallel.device_count(config, len(jax.devices()))
  if config['init_from']:
    config = config | {'init_from': os.path.abspath(os.path.expanduser(config['init_from']))}
  initial = '' if resumes else config['init_from']
  if initial or config['training']['freeze'] is not None or config['training']['patience'] is not None:
    check_by_shapes(config, dataset, task, initial)
  return Experiment(config, dataset, task)


def check_by_shapes(config, dataset, task, initial):
  """Raises UsageError where `freeze` leaves nothing to do, a metric is not there, or `initial` has other parameters."""
  program, floats, batch = step.make_program(config, tasks.build), floats_of(config), dataset.train_batch(0)
  state = jax.eval_shape(program.init, floats, jax.eval_shape(jax.random.key, 0), batch)
  if config['training']['freeze'] is not None and not all(map(jax.tree.leaves, (state.params, state.frozen))):
    paths = list(checkpoint.flat(step.merge_frozen(state.params, state.frozen)))
    matched = 'no parameter' if jax.tree.leaves(state.params) else 'all parameters'
    raise UsageError(
      f'config.training.freeze: {config["training"]["freeze"]!r} matches {matched}; there are {listed(paths[:4])} ...'
    )
  if config['training']['patience'] is not None:
    metrics = jax.eval_shape(program.evaluate, floats, state, next(dataset.validation_batches()))
    names = [f'validation/{name}' for name in task.report(dict.fromkeys(metrics, 1.0))]
    if (wanted := config['training']['patience_metric']) not in names:
      there = f'{nearest(wanted, names)}there are {listed(names)}'
      raise UsageError(f'config.training.patience_metric: {wanted!r} is not known; {there}')
  if initial:
    folder, which = initial_checkpoint(initial)
    at, manifest = checkpoint.find_whole(folder, which, checkpoint.print_warning)
    saved = checkpoint.leaves_of(folder, manifest, ('params', 'frozen'))
    saved = {path.replace('frozen/', 'params/', 1): leaf for path, leaf in saved.items()}
    params = checkpoint.flat({'params': step.merge_frozen(state.params, state.frozen)})
    wanted = {path: checkpoint.described(leaf) for path, leaf in params.items()}
    checkpoint.check_leaves(folder / str(at), saved, wanted)


def absolute(source):
  """'text:book.txt' -> 'text:/home/me/book.txt', since a run is resumed from anywhere."""
  kind, _, place = (source or '').partition(':')
  if not place or kind in ('bundled', 'tfds'):
    return source
  return f'{kind}:{os.path.abspath(os.path.expanduser(place))}'


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
  example: Any  # the first batch, on the host
  target: Any  # State of ShapeDtypeStruct with shardings


def place(experiment):
  config = experiment.config
  program = parallel.make_parallel(config, tasks.build)
  floats, key = program.put_floats(floats_of(config)), jax.random.key(config['seed'])
  example = experiment.dataset.train_batch(0)
  shapes = jax.eval_shape(program.init, floats, key, example)
  target = jax.tree.map(
    lambda sharding, part: jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part
    ),
    program.shardings,
    shapes,
  )
  return Prepared(program, floats, key, example, target)


def compile_step(prepared):
  """The one compilation of the train step: ahead of time, so that another shape is an error and never a second one."""
  batch = prepared.program.put_batch(prepared.example)
  return prepared.program.step.lower(prepared.floats, prepared.target, batch).compile()


def flops_of(compiled):
  """Floating-point operations of one call, as XLA counts them, or None."""
  found = compiled.cost_analysis()
  found = found[0] if isinstance(found, list) else found
  return (found or {}).get('flops')


def dry_run(experiment):
  """The parameter table, memory and FLOPs of the compiled step, as text; takes no step."""
  prepared = place(experiment)
  params = checkpoint.flat(prepared.target.params)
  lines = [f'{"parameter":<44}{"shape":<20}{"count":>12}']
  for path, leaf in params.items():
    lines.append(f'{path:<44}{list(leaf.shape)!s:<20}{leaf.size:>12,}')
  total = sum(leaf.size for leaf in params.values())
  lines += [f'{"all":<64}{total:>12,}', '']
  began = time.perf_counter()
  compiled = compile_step(prepared)
  seconds, memory, flops = time.perf_counter() - began, compiled.memory_analysis(), flops_of(compiled)
  facts, config = experiment.dataset.facts, experiment.config
  rows = config['data']['batch_size'] * config['data']['sequence_length']
  lines += [f'{name.replace("_", " "):<24}{value}' for name, value in facts.items()]
  lines += [
    f'{"devices":<24}{describe_devices(prepared.program)}',
    f'{"tokens a step":<24}{rows:,}',
    f'{"tokens in all":<24}{rows * config["training"]["steps"]:,}',
    f'{"compiled in":<24}{seconds:.1f} s',
    f'{"FLOPs a step":<24}{count(flops) if flops else "unknown"}',
    f'{"memory of a step":<24}{size(memory.argument_size_in_bytes)} arguments, '
    f'{size(memory.temp_size_in_bytes)} temporaries, {size(memory.output_size_in_bytes)} outputs, '
    f'{size(memory.alias_size_in_bytes)} of them in the place of arguments',
  ]
  return '\n'.join(lines)


def describe_devices(program):
  devices = list(program.mesh.devices.flat)
  return f'{len(devices)} of {len(jax.devices())} {devices[0].device_kind}'


def initial_checkpoint(path):
  """(folder of checkpoints, which of them) that `config.init_from` names. Raises UsageError."""
  folder, which = path, 'best'
  if os.path.basename(os.path.dirname(path.rstrip('/'))) == 'checkpoints':
    folder, which = os.path.dirname(os.path.dirname(path.rstrip('/'))), os.path.basename(path.rstrip('/'))
  folder = run.open_run(folder).path / 'checkpoints'
  if not checkpoint.steps(folder):
    raise UsageError(f'config.init_from: {path} has no checkpoint yet')
  return folder, which


def with_initial_params(state, config, target):
  """The State with the parameters that `config.init_from` names, the frozen ones included."""
  folder, which = initial_checkpoint(config['init_from'])
  _, fields = checkpoint.restore_fields(folder, ('params', 'frozen'), which)
  loaded = step.split_frozen(
    merge(fields.get('params', {}), fields.get('frozen', {})), config['training']['freeze']
  )
  places = jax.tree.map(lambda leaf: leaf.sharding, (target.params, target.frozen))
  params, frozen = jax.device_put(loaded, places)
  average = None if state.average is None else jax.tree.map(jnp.copy, params)
  return state._replace(params=params, frozen=frozen, average=average)


def merge(params, frozen):
  """Two nested dicts of arrays in one."""
  merged = dict(params)
  for name, value in frozen.items():
    merged[name] = merge(merged.get(name, {}), value) if isinstance(value, dict) else value
  return merged


def start_state(prepared, config, folder, console):
  """(State, step): restored from the newest good checkpoint, or made anew."""
  checkpoints = folder.path / 'checkpoints'
  if checkpoint.steps(checkpoints):
    at, state = checkpoint.restore(checkpoints, prepared.target, 'latest', console.say)
    console.say(f'resuming after step {at}')
    if at < config['training']['steps'] and not learns_after(at, config):
      console.say(
        f'WARNING: the learning rate has decayed to 0 by step {at}, so further steps change nothing; to train on, '
        f'start a new run with --config.init_from={folder.path}'
      )
    return state, at
  state = prepared.program.init(prepared.floats, prepared.key, prepared.example)
  if config['init_from']:
    state = with_initial_params(state, config, prepared.target)
    console.say(f'starting from the parameters of {config["init_from"]}')
  return state, 0


def learns_after(at, config):
  """Whether the schedule of the learning rate is above 0 for the step after step `at`."""
  return float(optimizer.unit_schedule(config['optimizer'], config['training']['steps'], at)) > 0


def check_same_data(folder, dataset):
  """Raises DataError where the data is not what the run began with."""
  path, facts = folder.path / FACTS, dataset.facts
  before = files.read_json(path) if path.exists() else facts
  changed = [key for key in facts if 'sha256' in key and before.get(key) != facts[key]]
  if changed:
    raise DataError(
      f'{facts["source"]}: is not what {folder.path} was trained on ({changed[0]} was {before.get(changed[0])}'
      f' and is {facts[changed[0]]}); put the old data back, or start a new run'
    )


def train(experiment, folder, console, began):
  """Trains in a run folder that the caller holds open, from where it is to `config.training.steps`.

  Args:
    experiment: from `prepare`. folder: run.Run. console: where lines go.
    began: `time.perf_counter()` when the user's command started, for the time to the first step.

  Raises:
    DataError: the data has changed, or numbers are not finite. Interrupted: by a signal, after saving.
  """
  config, dataset = experiment.config, experiment.dataset
  check_same_data(folder, dataset)
  if not (folder.path / FACTS).exists():
    files.write_json(folder.path / FACTS, dataset.facts)
  prepared = place(experiment)
  folder.record_environment(prepared.program.mesh.devices.flat)
  if not (folder.path / 'tokenizer.json').exists():
    dataset.tokenizer.save(folder.path / 'tokenizer.json')
  for name in ('samples', 'plots'):
    (folder.path / name).mkdir(exist_ok=True)
  announce(experiment, prepared, console)
  state, start = start_state(prepared, config, folder, console)
  with (
    run.MetricsWriter(
      folder.path, tensorboard_files=config['training']['tensorboard'], resumed_from=start if start else None
    ) as writer,
    checkpoint.Checkpointer(
      folder.path / 'checkpoints', keep=config['training']['keep_checkpoints'], resumed_from=start
    ) as checkpointer,
  ):
    return take_steps(experiment, prepared, folder, console, state, start, writer, checkpointer, began)


def announce(experiment, prepared, console):
  facts, leaves = experiment.dataset.facts, jax.tree.leaves((prepared.target.params, prepared.target.frozen))
  console.say(f'data: {facts["source"]}, {facts["characters"]:,} characters; {facts["split"]}')
  console.say(
    f'model: {experiment.config["model"]["name"]}, {sum(leaf.size for leaf in leaves):,} parameters; '
    f'devices: {describe_devices(prepared.program)} ({experiment.config["parallel"]["mode"]})'
  )


def take_steps(experiment, prepared, folder, console, state, start, writer, checkpointer, began):
  config, dataset, task = experiment
  training, program, notes = config['training'], prepared.program, {'checkpoint': start or None}
  history = [row[m] for row in run.read_metrics(folder.path) if (m := training['patience_metric']) in row]
  if hooks.used_up(training['patience'], history):  # killed when it had ended and had not yet said so
    folder.write_status('done', start, checkpoint=start, message='early stop')
    return Outcome(state, start, 'early stop')
  compile_began = time.perf_counter()
  compiled = compile_step(prepared)
  now = time.perf_counter()
  console.say(f'compiled in {now - compile_began:.1f} s; first step {now - began:.1f} s after the start')
  save = hooks.saver(checkpointer, writer, notes)
  interval = [
    hooks.evaluation(config, program, prepared.floats, dataset, task, writer, console, history, notes),
    hooks.samples(config, dataset, task, folder.path / 'samples', console),
    Hook(training['checkpoint_every'], save),
  ]
  interval = [hooks.timed(hook, notes) for hook in interval]
  record = hooks.recorder(
    writer,
    console,
    start=start,
    steps=training['steps'],
    log_every=training['log_every'],
    unit=task.unit,
    flops=flops_of(compiled),
    devices=list(program.mesh.devices.flat),
    notes=notes,
  )
  folder.write_status('running', start, checkpoint=notes['checkpoint'])
  step_function = lambda state, batch: compiled(prepared.floats, state, batch)
  batch_at = lambda n: program.put_batch(dataset.train_batch(n))
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
  folder.write_status(state, notes.get('step', last or 0), checkpoint=last, message=str(error))
  good = (
    f'the last good checkpoint is {folder.path}/checkpoints/{last}' if last else 'there is no checkpoint yet'
  )
  raise type(error)(f'{error}; {good}') from error


def loss_curve(folder):
  """Draws plots/loss.png: training loss and its validation values over steps. Returns the path."""
  from matplotlib.figure import Figure  # (pyplot would look for a display)

  rows = run.read_metrics(folder)
  figure = Figure(figsize=(7, 4.2), layout='constrained')
  axes = figure.add_subplot()
  for name, style in (('train/loss', dict(linewidth=0.8, alpha=0.7)), ('validation/loss', dict(marker='o'))):
    points = np.array([(row['step'], row[name]) for row in rows if name in row], float).reshape(-1, 2)
    axes.plot(*points.T, label=name, **style)
  axes.set(xlabel='step', ylabel='loss (nats per token)', title=os.path.basename(os.path.abspath(folder)))
  axes.grid(alpha=0.3)
  axes.legend()
  path = os.path.join(folder, 'plots', 'loss.png')
  figure.savefig(path, dpi=120)
  return path
