"""An experiment on its devices: the program placed, its arrays laid out, its train steps compiled."""

from typing import Any, NamedTuple

import jax

from aigc_jax import tasks
from aigc_jax.config import floats_of
from aigc_jax.task import RESIDENT
from aigc_jax.training import attention, checkpoint, mesh, parallel, processes


class Prepared(NamedTuple):
  """An experiment on its devices, not yet compiled."""

  program: parallel.Parallel
  floats: Any
  key: Any
  example: Any  # the first batch: all its rows on the host, and a data set that lives on the devices there
  resident: Any  # that data set, as every batch has it: {'resident': arrays} or {}
  target: Any  # State of ShapeDtypeStruct with shardings
  attention: attention.Choice | None  # None: its model does not attend


def place(experiment):
  batch, devices = experiment.dataset.train_batch(0), experiment.devices
  config, choice = attention.settled(experiment.config, batch, devices)
  program = parallel.make_parallel(config, tasks.build, devices)
  floats, key = program.put_floats(floats_of(config)), program.put_key(config['seed'])
  resident = program.put_resident(experiment.dataset.resident)
  example = batch | resident
  shapes = jax.eval_shape(program.init, floats, key, example)
  target = jax.tree.map(lambda leaf, where: leaf.update(sharding=where), shapes, program.shardings(shapes))
  return Prepared(program, floats, key, example, resident, target, choice)


def batch_on_devices(prepared, dataset, step):
  """The batch of a step as the program sees it, of which this process reads its own rows."""
  return prepared.program.put_batch(dataset.train_batch(step, prepared.program.part)) | prepared.resident


def batches_on_devices(prepared, dataset, step, stride):
  """The batches of `stride` steps from `step` on, as one call of the program sees them; of one, its batch."""
  if stride == 1:
    return batch_on_devices(prepared, dataset, step)
  batches = [dataset.train_batch(step + i, prepared.program.part) for i in range(stride)]
  return prepared.program.put_batches(batches) | prepared.resident


def lower_step(prepared, example=None):
  """The train step for the shapes of a batch; compiled ahead of time, so that another shape is an error."""
  batch = prepared.example if example is None else example
  rows = {name: array for name, array in batch.items() if name != RESIDENT}
  batch = prepared.program.shapes_of(rows) | prepared.resident
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


def compile_calls(experiment, prepared):
  """As `compile_steps`, of calls that take `config.training.steps_per_call` steps each."""
  stride = experiment.config['training']['steps_per_call']
  if stride == 1:
    return compile_steps(experiment, prepared)
  rows = {name: array for name, array in prepared.example.items() if name != RESIDENT}
  batches = prepared.program.shapes_of(rows, stride) | prepared.resident
  lowered = prepared.program.steps.lower(prepared.floats, prepared.target, batches)
  flops = flops_of(lower_step(prepared), experiment, prepared)
  return {shape_of(batches): lowered.compile()}, flops


def step_function(prepared, compiled):
  """state, batch on the devices -> state, metrics: by the program for the batch's shape, as `compile_steps` gives them.

  Several processes on CPUs await each step: exchanges of steps that are queued may wait for each other for ever.
  """
  device = prepared.program.mesh.devices.flat[0]
  awaits = processes.several() and device.platform == 'cpu'

  def step(state, batch):
    state, metrics = compiled[shape_of(batch)](prepared.floats, state, batch)
    return jax.block_until_ready(state) if awaits else state, metrics

  return step


def flops_of(lowered, experiment, prepared):
  """Floating-point operations of a step on all devices together, as XLA counts them, or None."""
  config = attention.attending(experiment.config, 'xla')
  training, places = config['training'], config['parallel']
  # XLA counts a loop's body and one device's part once, and what cuDNN does not at all.
  by_cudnn = prepared.attention is not None and prepared.attention.implementation == 'cudnn'
  if training['microbatches'] > 1 or places['mode'] == 'pmap' or by_cudnn:
    whole = {'training': training | {'microbatches': 1}, 'parallel': places | {'mode': 'mesh'}}
    program = parallel.make_parallel(config | whole, tasks.build, experiment.devices)
    lowered = lower_step(prepared._replace(program=program))
  found = lowered.cost_analysis()
  return (found or {}).get('flops')


def notes_on(prepared, config):
  """Lines for people on what a layout does not do for this model and batch."""
  program, notes = prepared.program, []
  used, parallel = program.mesh.size, config['parallel']
  if -1 in parallel.values() and used < len(jax.devices()):
    notes.append(
      f'note: {used} of {len(jax.devices())} devices are used, as many as fit config.parallel and divide the '
      f'{mesh.told_rows(config)}'
    )
  if (parts := program.mesh.shape['tensor']) > 1:
    leaves = checkpoint.flat((prepared.target.params, prepared.target.frozen))
    split = [path for path, leaf in leaves.items() if 'tensor' in leaf.sharding.spec]
    if not split:
      notes.append(f'note: config.parallel.tensor = {parts} splits no layer of {config["model"]["name"]}')
  return notes


def describe_devices(program):
  devices = list(program.mesh.devices.flat)
  axes = f', {mesh.product_of(dict(program.mesh.shape))}' if len(devices) > 1 else ''
  return f'{len(devices)} of {len(jax.devices())} {devices[0].device_kind}{axes}'
