"""What a probe shows, for people: matrices, texts, pictures and bars, as plain data."""

import re
from typing import Any, NamedTuple

import numpy as np

from aigc_jax.errors import UsageError, listed

COLOURS = ('sequential', 'diverging')


class Axis(NamedTuple):
  """What lies along an axis of an array: 'layer', 'head', 'token'."""

  name: str
  labels: list  # of str, one for each place


def numbered(name, count):
  """An Axis whose places are called by their numbers, from 0."""
  return Axis(name, [str(i) for i in range(count)])


class Heat(NamedTuple):
  """A matrix, or one for each of some choices (a layer, a head)."""

  title: str
  values: Any  # floats [*choices, rows, columns]; NaN where there is none
  axes: tuple  # one Axis for each axis of values, in order
  colours: str = 'sequential'  # from 0 to the largest, or 'diverging' on both sides of 0
  details: Any = None  # nested lists of str [rows][columns] or [*choices][rows][columns], shown on hover
  cells: Any = None  # the same, written into the cells (short)


class Text(NamedTuple):
  """A text on colours: a number for each token, or for each pair of tokens."""

  title: str
  tokens: list  # of str, as they are in the text; white space is made visible when drawn
  values: Any  # floats [*choices, tokens], `pairwise` [*choices, tokens, others]; NaN where there is none
  axes: tuple  # one Axis for each of the choices alone
  others: list | None = None  # pairwise: what is coloured when one of `tokens` is chosen; None: tokens itself
  pairwise: bool = False
  colours: str = 'sequential'
  details: list | None = None  # of str, one for each token, shown on hover
  unit: str = ''  # what the numbers are: 'bits'


class Pictures(NamedTuple):
  """A grid of images of one size."""

  title: str
  images: Any  # [rows, columns, height, width, channels 1 or 3], uint8 or floats from 0 to 1
  rows: Axis
  columns: Axis


class Bars(NamedTuple):
  """A number for each of some things."""

  title: str
  values: Any  # floats [n]; NaN where there is none
  axis: Axis
  unit: str = ''


def check(probe):
  """Raises UsageError where a panel holds nothing, or its parts do not fit one another."""
  if not re.fullmatch(r'[\w.-]+', probe.name):
    raise UsageError(f'probe: the name {probe.name!r} is no name of a file; give letters, digits, _ and -')
  if not probe.panels:
    raise UsageError(f'probe {probe.name}: found nothing to show: it has no panels')
  for name, array in probe.arrays.items():
    if np.asarray(array).dtype.kind == 'O':
      raise UsageError(f'probe {probe.name}: its array {name} holds objects; give numbers or text')
  for panel in probe.panels:
    where = f'probe {probe.name}, panel {panel.title!r}'
    shape, expected = np.shape(values_of(panel)), shape_of(panel, where)
    if 0 in shape or 0 in expected:
      raise UsageError(f'{where}: is empty, of shape {list(shape)}; it takes one of each axis at least')
    if shape[: len(expected)] != expected or len(shape) != len(expected) + 3 * isinstance(panel, Pictures):
      raise UsageError(f'{where}: values are of shape {list(shape)}, and its axes of {list(expected)}')
    if isinstance(panel, Pictures) and shape[-1] not in (1, 3):
      raise UsageError(f'{where}: images of {shape[-1]} channels; it takes 1 or 3')
    if getattr(panel, 'colours', COLOURS[0]) not in COLOURS:
      raise UsageError(f'{where}: colours {panel.colours!r} are not known; there are {listed(COLOURS)}')
    for name in ('details', 'cells'):
      check_nested(getattr(panel, name, None), expected, isinstance(panel, Text), f'{where}: {name}')


def check_nested(texts, expected, of_tokens, where):
  """Nested lists of str fit the last axes of `expected`, or all; of a text, its tokens."""
  if texts is None:
    return
  shape = np.shape(np.array(texts, object))
  allowed = [(count,) for count in expected] if of_tokens else [expected, expected[-2:]]
  if shape not in allowed:
    raise UsageError(f'{where} are of shape {list(shape)}, and values of {list(expected)}')


def values_of(panel):
  return panel.images if isinstance(panel, Pictures) else panel.values


def shape_of(panel, where='panel'):
  """The shape that the axes of a panel say: of images, the two of the grid."""
  axes = axes_of(panel)
  shape = tuple(len(axis.labels) for axis in axes)
  if not isinstance(panel, Text):
    return shape
  if panel.others is not None and not panel.pairwise:
    raise UsageError(f'{where}: others are coloured only where it is pairwise')
  shape = (*shape, len(panel.tokens))
  return (*shape, len(others_of(panel))) if panel.pairwise else shape


def axes_of(panel):
  if isinstance(panel, Bars):
    return (panel.axis,)
  return (panel.rows, panel.columns) if isinstance(panel, Pictures) else tuple(panel.axes)


def choices_of(panel):
  """The axes of which one place is shown at a time."""
  axes = axes_of(panel)
  return axes[:-2] if isinstance(panel, Heat) else axes if isinstance(panel, Text) else ()


def others_of(text):
  """What is coloured when a token is chosen."""
  return text.tokens if text.others is None else text.others


def places_of(axes, i):
  """[(Axis, label)] of place `i` among all of some axes, the last the fastest."""
  found = np.unravel_index(i, [len(axis.labels) for axis in axes]) if axes else ()
  return [(axis, axis.labels[place]) for axis, place in zip(axes, found, strict=True)]


def limits(values, colours):
  """(lowest, highest) that colours stand for: with 0 in it, and in its middle where colours are diverging."""
  finite = np.asarray(values, np.float64)
  finite = finite[np.isfinite(finite)]
  low, high = (min(0.0, finite.min()), max(0.0, finite.max())) if finite.size else (0.0, 0.0)
  if colours == 'diverging':
    low, high = min(low, -high), max(high, -low)
  return (low, high) if high > low else ((-1.0, 1.0) if colours == 'diverging' else (0.0, 1.0))


def spread(count, most):
  """Indices of at most so many of `count` places, evenly spread, the first and the last among them."""
  return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if most > 1 else [0]


def part(panel, kept):
  """A Heat or Text with a part of the places of its first axes.

  kept: indices for each of the first axes of values, at most as many as it has Axis.
  """
  values = np.asarray(panel.values)
  for i, places in enumerate(kept):
    values = values.take(places, i)
  old = axes_of(panel)
  axes = [Axis(axis.name, [axis.labels[i] for i in places]) for axis, places in zip(old, kept, strict=False)]
  new = panel._replace(values=values, axes=(*axes, *old[len(kept) :]))
  if isinstance(panel, Heat):
    whole = [*kept, *(range(len(axis.labels)) for axis in old[len(kept) :])]
    taken = lambda texts: None if texts is None else nested(texts, whole[-depth(texts) :])
    new = new._replace(details=taken(panel.details), cells=taken(panel.cells))
  return new


def nested(texts, kept):
  """Nested lists with a part of the places of each level."""
  return [nested(texts[i], kept[1:]) for i in kept[0]] if kept else texts


def depth(texts):
  return 0 if isinstance(texts, str) else 1 + depth(texts[0])
