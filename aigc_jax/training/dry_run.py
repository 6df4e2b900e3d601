"""The dry run of a prepared experiment: what it would do, hold and exchange; no step is taken."""

import time

from aigc_jax.task import RESIDENT
from aigc_jax.training import checkpoint, collectives, memory_use, placement
from aigc_jax.training.console import count, size
from aigc_jax.training.prepare import notes_on


def parameter_table(state):
  """Lines of path, shape and count."""
  rows = [(path, leaf, '') for path, leaf in checkpoint.flat(state.params).items()]
  rows += [(path, leaf, '  frozen') for path, leaf in checkpoint.flat(state.frozen).items()]
  total = lambda mark: sum(leaf.size for _, leaf, m in rows if m in mark)
  lines = [f'{"parameter":<44}{"shape":<20}{"count":>12}']
  lines += [f'{path:<44}{list(leaf.shape)!s:<20}{leaf.size:>12,}{mark}' for path, leaf, mark in rows]
  lines += [f'{"all":<64}{total(("", "  frozen")):>12,}']
  return lines + ([f'{"trained":<64}{total(("",)):>12,}'] if state.frozen is not None else [])


def dry_run(experiment, show=print):
  """Shows parameters, arrays on the devices, memory, FLOPs and exchanges of the compiled step; takes no step.

  Raises UsageError, all that shown, where it does not fit a device.
  """
  prepared, config = placement.place(experiment), experiment.config
  began = time.perf_counter()
  lowered = placement.lower_step(prepared)
  compiled = lowered.compile()
  seconds, flops = time.perf_counter() - began, placement.flops_of(lowered, experiment, prepared)
  rows, steps = config['data']['batch_size'], config['training']['steps']
  lines = [*parameter_table(prepared.target), '', *memory_use.array_table(prepared.target), '']
  lines += [f'{name.replace("_", " "):<24}{value}' for name, value in experiment.dataset.facts.items()]
  lines += [
    f'{"devices":<24}{placement.describe_devices(prepared.program)}',
    *([f'{"attention":<24}{prepared.attention.line}'] if prepared.attention is not None else []),
    f'{"a step":<24}{shapes_of(prepared.example)}',
    f'{"in all":<24}{steps:,} steps of {rows:,} rows{epochs_of(experiment)}',
    f'{"compiled in":<24}{seconds:.1f} s',
    f'{"FLOPs a step":<24}{count(flops) if flops else "unknown"}',
    f'{"memory on a device":<24}{memory_line(compiled, experiment.devices[0])}',
  ]
  exchanged = collectives.table(collectives.find(compiled), size)
  lines += [
    f'{name:<24}{line}' for name, line in zip(['exchanged in a step'] + [''] * 9, exchanged, strict=False)
  ]
  show('\n'.join(lines + notes_on(config)))
  placement.check_memory(experiment, prepared, [compiled])


def memory_line(compiled, device):
  """What a step holds, by XLA's account, and what there is."""
  use, limit = memory_use.of_program(compiled), memory_use.capacity(device)
  return (
    f'{size(use.peak)} of {size(limit) if limit else "an unknown size"}: {size(use.arguments)} arguments, '
    f'{size(use.temporaries)} temporaries, {size(use.outputs)} outputs, {size(use.aliased)} of them in the place of '
    'arguments'
  )


def epochs_of(experiment):
  each = experiment.dataset.facts['steps_per_epoch']  # None where the data has no end
  return f', {experiment.config["training"]["steps"] / each:.1f} epochs' if each else ''


def shapes_of(batch):
  return ', '.join(f'{name} {list(array.shape)}' for name, array in batch.items() if name != RESIDENT)
