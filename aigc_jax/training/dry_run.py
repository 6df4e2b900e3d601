"""The dry run of a prepared experiment: what it would do, hold and exchange; no step is taken."""

import time

from aigc_jax.task import RESIDENT
from aigc_jax.training import checkpoint, collectives, console, memory_use, placement
from aigc_jax.training.console import count, size
from aigc_jax.training.prepare import notes_on


def parameter_table(state):
  """Lines of path, shape, how many there are of each, and count."""
  trained, frozen = (checkpoint.flat(tree) for tree in (state.params, state.frozen))
  rows, numbers = (
    [('parameter', 'shape', 'arrays', 'count', '')],
    lambda leaves: sum(leaf.size for leaf in leaves),
  )
  for kind, mark in ((trained, ''), (frozen, 'frozen')):
    rows += [
      (path, str(list(leaves[0].shape)), str(len(leaves)), f'{numbers(leaves):,}', mark)
      for path, leaves in memory_use.alike(kind)
    ]
  totals = [('all', [*trained.values(), *frozen.values()])] + (
    [('trained', trained.values())] if frozen else []
  )
  rows += [(name, '', str(len(leaves)), f'{numbers(leaves):,}', '') for name, leaves in totals]
  return console.table(rows, numbers=(2, 3))


def dry_run(experiment, show=print):
  """Shows parameters, arrays on the devices, memory, FLOPs and exchanges of the compiled step; takes no step.

  Raises UsageError, all that is known shown, where it does not fit its devices: what its shapes alone tell is told
  before anything is compiled.
  """
  prepared, devices = placement.place(experiment), experiment.devices
  facts = [
    (name.replace('_', ' '), f'{v:,}' if type(v) is int else v)
    for name, v in experiment.dataset.facts.items()
  ]
  show('\n'.join([*parameter_table(prepared.target), '', *memory_use.array_table(prepared.target), '']))
  shapes = experiment.dataset.shapes() if experiment.dataset.shapes else [prepared.example]
  largest = max(shapes, key=lambda batch: sum(rows.size for name, rows in batch.items() if name != RESIDENT))
  show('\n'.join(labelled([*facts, *plan(experiment, prepared, largest, len(shapes))])))
  memory_use.check_state(prepared.target, devices)
  began = time.perf_counter()
  prepared = prepared._replace(example=largest)
  lowered = placement.lower_step(prepared)
  compiled = lowered.compile()
  seconds, flops = time.perf_counter() - began, placement.flops_of(lowered, experiment, prepared)
  use, limit = memory_use.of_program(compiled), memory_use.capacity(devices)
  rows = [
    ('compiled in', f'{seconds:.1f} s'),
    ('FLOPs a step', count(flops) if flops else 'unknown'),
    ('memory on a device', f'{size(use.peak)} of {size(limit) if limit else "an unknown size"}: {use}'),
  ]
  exchanged = collectives.table(collectives.find(compiled), size)
  names = ['exchanged in a step', *[''] * len(exchanged)]
  rows += zip(names, exchanged, strict=False)
  show(
    '\n'.join(
      [*labelled(rows), *placement.notes_on(prepared, experiment.config), *notes_on(experiment.config)]
    )
  )
  memory_use.check(use, devices)


def labelled(rows):
  return [f'{name:<24}{value}' for name, value in rows]


def plan(experiment, prepared, batch, shapes):
  """[(name, text)] of what would be done where; `batch`: the largest, of one of several `shapes`."""
  config = experiment.config
  rows, steps = config['data']['batch_size'], config['training']['steps']
  return [
    ('devices', f'{placement.describe_devices(prepared.program)} ({config["parallel"]["mode"]})'),
    *([('attention', prepared.attention.line)] if prepared.attention is not None else []),
    ('a step', shapes_of(batch) + (f', the largest of {shapes} shapes' if shapes > 1 else '')),
    ('in all', f'{steps:,} steps of {rows:,} rows{epochs_of(experiment)}'),
  ]


def epochs_of(experiment):
  each = experiment.dataset.facts['steps_per_epoch']  # None where the data has no end
  return f', {experiment.config["training"]["steps"] / each:.1f} epochs' if each else ''


def shapes_of(batch):
  return ', '.join(f'{name} {list(array.shape)}' for name, array in batch.items() if name != RESIDENT)
