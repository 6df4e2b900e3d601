"""States and gates of a recurrent network over a text (Karpathy et al. 2015)."""

import re

import numpy as np

from aigc_jax.errors import UsageError
from aigc_jax.probes.panels import Axis, Heat, Text
from aigc_jax.probes.result import Probe

PATH = re.compile(r'(?P<layer>[\w/]*layer_\d+(_reversed)?)(/inside/(?P<name>.*))?$')
SHOWN = 64  # units on the page of each layer, those that move most first; the arrays have all
CLOSED, OPEN = 0.1, 0.9  # of a gate, as section 4.2 has it
NOTES = (
  'Units are in the order of how much their state moves over this text. A gate at 0 is closed, at 1 open; how often '
  'the gate of a unit is below 0.1 and above 0.9 is the saturation of Karpathy et al. 2015 (section 4.2). An LSTM '
  'has a state h and a cell c; a GRU whose update gate is 1 keeps its state.'
)


def probe(run, reading):
  """What each layer does over a Reading of one text.

  Arrays: 'LAYER_state' and 'LAYER_GATE' [time, width] of each layer. Raises UsageError where nothing is recurrent.
  """
  if not hasattr(reading.module, 'cell'):
    raise UsageError(f'{run.path}: its model, {run.config["model"]["name"]}, has no recurrent layers')
  _, found = reading.capture()
  layers = {}
  for path, array in found.items():
    if match := PATH.fullmatch(path):
      layers.setdefault(match['layer'], {})[match['name'] or 'state'] = array[:, 0]  # [time, width]
  panels, kept = [], {}
  for layer, arrays in layers.items():
    name = layer.replace('/', ' ').replace('_', ' ').removeprefix('recurrent ')
    tokens = reading.sources if layer.startswith('encoder') else reading.tokens
    panels += of_layer(name, arrays, tokens)
    kept |= {f'{name} {what}'.replace(' ', '_'): array for what, array in arrays.items()}
  return Probe('gates', 'states and gates', panels, kept, NOTES)


def of_layer(name, arrays, tokens):
  """Panels of one layer's arrays, each [time, width]."""
  order = np.argsort(-arrays['state'].std(0), kind='stable')[:SHOWN]
  units, places = Axis('unit', [str(i) for i in order]), Axis('token', tokens)
  names = list(arrays)
  gates = [what for what in names if what.endswith('gate')]
  signed = [what for what in names if what not in gates]
  panels = []
  for kind, chosen, colours in (('states', signed, 'diverging'), ('gates', gates, 'sequential')):
    if chosen:
      stacked = np.stack([arrays[what][:, order].T for what in chosen])  # [kinds, units, time]
      axes = Axis('', chosen), units
      panels.append(
        Text(f'{name}: {kind} over the text', tokens, stacked, axes, colours=colours, unit='value')
      )
      panels.append(Heat(f'{name}: {kind} of all units', stacked, (*axes, places), colours=colours))
  if gates:
    shares = np.stack(
      [[(arrays[what] < CLOSED).mean(0)[order], (arrays[what] > OPEN).mean(0)[order]] for what in gates]
    )  # [gates, 2, units]
    axes = Axis('gate', gates), Axis('share of the text', ['closed', 'open']), units
    panels.append(Heat(f'{name}: saturation of gates', shares, axes))
  return panels
