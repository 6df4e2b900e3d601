"""An experiment on its devices: the program placed, its arrays laid out, its train steps compiled."""

from typing import Any, NamedTuple

import jax

from aigc_jax import tasks
from aigc_jax.config import floats_of
from aigc_jax.task import RESIDENT
from aigc_jax.training import attention, memory_use, mesh, parallel

ADVICE = (
  '; give --config.parallel.fsdp or .tensor more devices, or try --config.training.microbatches, --config.model.remat, '
  'or a smaller batch'
)


class Prepared(NamedTuple):
  """An experiment on its devices, not yet compiled."""

  program: parallel.Parallel
  floats: Any
  key: Any
  example: Any  # the first batch: rows on the host, and a data set that lives on the devices there
  resident: Any  # that data set, as every batch has it: {'resident': arrays} or {}
  target: Any  # State of ShapeDtypeStruct with shardings
  attention: attention.Choice | None  # None: its model does not attend


def place(experiment):
  batch, devices = experiment.dataset.train_batch(0), experiment.devices
  config, choice = attention.settled(experiment.config, batch, devices)
  program = parallel.make_parallel(config, tasks.build, devices)
  floats, key = program.put_floats(floats_of(config)), jax.random.key(config['seed'])
  resident = program.put_resident(experiment.dataset.resident)
  example = batch | resident
  shapes = jax.eval_shape(program.init, floats, key, example)
  target = jax.tree.map(lambda leaf, where: leaf.update(sharding=where), shapes, program.shardings(shapes))
  return Prepared(program, floats, key, example, resident, target, choice)


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


def check_memory(experiment, prepared, compiled=()):
  """Raises UsageError where the state, or a step of one of the compiled programs, does not fit a device."""
  device, whole = experiment.devices[0], memory_use.bytes_of_state(prepared.target)
  for use in [*map(memory_use.of_program, compiled), whole]:
    memory_use.check(use, device, ADVICE)


def describe_devices(program):
  devices = list(program.mesh.devices.flat)
  axes = f', {mesh.product_of(dict(program.mesh.shape))}' if len(devices) > 1 else ''
  return f'{len(devices)} of {len(jax.devices())} {devices[0].device_kind}{axes}'
