"""What every part of a model gives, by its path, for any family: arrays to work with, and a look at each."""

import re

import numpy as np

from aigc_jax.errors import UsageError, listed
from aigc_jax.probes.panels import Axis, Bars, Heat
from aigc_jax.probes.result import Probe

SHOWN = 24  # parts that are drawn
MOST_ROWS, MOST_COLUMNS = 512, 512  # of a drawing; the arrays have all
NOTES = (
  'Paths are those of the parameters. Size is the root of the mean square; a part that is 0 everywhere is dead. '
  'Drawings show the first row of a batch, places by units, or all rows where each is one vector.'
)


def probe(run, reading, parts=None):
  """Activations of a Reading.

  Args:
    parts: a regular expression that paths contain, 'block_0/.*' or 'mlp$'; None: all parts.

  Returns a Probe whose arrays are the activations, {path: array}. Raises UsageError for an expression that is none, or
  that no path contains.
  """
  _, found = reading.capture()
  found = {path or 'output': np.asarray(array) for path, array in found.items()}
  try:
    wanted = re.compile(parts or '')
  except re.error as error:
    raise UsageError(f'parts: {parts!r} is no regular expression: {error}') from None
  kept = {path: array for path, array in found.items() if wanted.search(path) and array.size}
  if not kept:
    raise UsageError(f'parts: no path contains {parts!r}; there are {listed(sorted(found)[:40])}')
  numbers = {path: array.astype(np.float32) for path, array in kept.items()}
  sizes = np.array([np.sqrt(np.square(array).mean()) for array in numbers.values()])
  zeros = np.array([(array == 0).mean() for array in numbers.values()])
  names = Axis('part', [f'{path} {list(array.shape)}' for path, array in kept.items()])
  panels = [Bars('size of activations', sizes, names), Bars('share of zeros', zeros, names)]
  panels += [drawn(path, array, reading) for path, array in list(numbers.items())[:SHOWN] if array.ndim > 1]
  return Probe('activations', 'activations', panels, kept, NOTES)


def drawn(path, array, reading):
  """The first row of a batch as places by units, or all rows where each is one vector; of maps, the pixels in a row."""
  time_first = (
    'layer_' in path.split('/')[-1] or '/inside/' in path or path in ('recurrent', 'encoder', 'decoder')
  )
  if array.ndim > 2:
    array = array[:, 0] if time_first and array.ndim == 3 and array.shape[1] == 1 else array[0]
  matrix = array.reshape(-1, array.shape[-1])
  matrix = matrix[:MOST_ROWS, :MOST_COLUMNS]
  tokens = next((known for known in (reading.tokens, reading.sources) if len(known) == len(matrix)), None)
  rows = Axis('token' if tokens else 'place', tokens or [str(i) for i in range(len(matrix))])
  return Heat(
    path, matrix, (rows, Axis('unit', [str(i) for i in range(matrix.shape[1])])), colours='diverging'
  )
