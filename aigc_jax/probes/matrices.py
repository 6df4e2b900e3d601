"""Pictures of matrices: one large, its cells with text, or many small ones."""

import math

import numpy as np

from aigc_jax import figures
from aigc_jax.probes import panels as p
from aigc_jax.probes.lettering import LETTERS, WIDTH, Letters, figure_of, scale_of, ticks_of
from aigc_jax.typography import columns, visible

MATRICES, ACROSS = 144, 12  # small ones of a panel at most, and beside one another
LABELS = 48  # of an axis that is labelled
SMALL_LABELS = 10  # of an axis of one of several matrices
CELLS = 48, 256  # rows and columns at most of a matrix whose cells have text
STRIP = 16  # of these columns beside one another
MAPS = {'sequential': 'viridis', 'diverging': 'RdBu_r'}


def draw_heat(panel):
  """A matrix, or small ones over its choices: a row for each of the last but one, a column for each of the last."""
  shown = scale_of(p.limits(panel.values, panel.colours), MAPS[panel.colours])
  panel, left_out = within(panel)
  letters = Letters([panel.title, *(text for axis in panel.axes for text in [axis.name, *axis.labels])])
  values = np.asarray(panel.values, np.float64)
  matrices = values.reshape(-1, *values.shape[-2:])
  if panel.cells is not None and len(matrices) == 1 and fits_cells(matrices[0]):
    figure, grid = draw_strips(panel, matrices[0], shown, letters)
  else:
    figure, grid = draw_matrices(panel, matrices, shown, letters)
  figure.colorbar(shown, ax=grid, aspect=30, fraction=0.04, pad=0.01)
  figure.suptitle(letters.title(panel, left_out), x=0.012, ha='left', **letters.style(fontsize=11))
  return figures.rendered(figure)


def draw_matrices(panel, matrices, shown, letters):
  """(figure, axes [rows, across]) with all matrices [n, rows, columns], one on each of the first axes."""
  choices, count = p.choices_of(panel), len(matrices)
  across = min(ACROSS, count) if len(choices) < 2 else len(choices[-1].labels)
  rows = math.ceil(count / across)
  height, width = matrices.shape[1:]
  if count > 1:
    each = min(max(height / width, 0.5), 1.3) * WIDTH / max(across, 3)
    figure = figure_of(0.9 + rows * (each + 0.25))
  else:
    figure = figure_of(1.6 + min(max(0.22 * height, 1.2), 9))
  grid = figure.subplots(rows, across, squeeze=False)
  for axes in grid.flat[count:]:
    axes.axis('off')
  for i, (matrix, axes) in enumerate(zip(matrices, grid.flat, strict=False)):
    draw_matrix(axes, matrix, shown)
    at_left, at_foot, at_top = i % across == 0, i >= count - across, i < across
    named = [f'{axis.name} {visible(label)}'.strip() for axis, label in p.places_of(choices, i)]
    if len(choices) > 1:  # the rows are named at the left, the columns above
      axes.set_title(letters.plain(named[-1]) if at_top else '', **letters.style(fontsize=8))
    else:
      axes.set_title(letters.plain(', '.join(named)), **letters.style(fontsize=8))
    before = f'{named[-2]}\n' if len(named) > 1 else ''
    label_matrix(axes, panel.axes[-2:], letters, at_left, at_foot, count, before)
  return figure, grid


def draw_matrix(axes, matrix, shown):
  style = dict(cmap=shown.cmap, norm=shown.norm, aspect='auto', interpolation='nearest')
  axes.imshow(np.ma.masked_invalid(matrix), **style)


def fits_cells(matrix):
  return matrix.shape[0] <= CELLS[0] and matrix.shape[1] <= CELLS[1]


def draw_strips(panel, matrix, shown, letters):
  """(figure, axes) of a matrix whose cells have text: its columns are folded like lines."""
  height, width = matrix.shape
  count = math.ceil(width / STRIP)
  across = math.ceil(width / count)
  figure = figure_of(0.6 + count * (0.75 + 0.24 * height))
  grid = figure.subplots(count, 1, squeeze=False)
  texts = panel.cells
  while p.depth(texts) > 2:
    texts = texts[0]
  written = Letters([text for row in texts for text in row])
  rows, columns_ = panel.axes[-2:]
  for i, axes in enumerate(grid.flat):
    first, last = i * across, min((i + 1) * across, width)
    draw_matrix(axes, matrix[:, first:last], shown)
    part = p.Axis(columns_.name, columns_.labels[first:last])
    label_matrix(axes, (rows, part), letters, True, True, 1)
    write_cells(axes, matrix[:, first:last], [row[first:last] for row in texts], shown, written, across)
    axes.set_xlim(-0.5, across - 0.5)
    axes.spines[:].set_visible(False)
  return figure, grid


def within(panel):
  """(a Heat with at most MATRICES of its matrices, what was left out)."""
  counts = [len(axis.labels) for axis in p.choices_of(panel)]
  if math.prod(counts) <= MATRICES:
    return panel, ''
  most = [1] * (len(counts) - 2) + [MATRICES] * min(len(counts), 2)
  if len(counts) > 1:
    most[-1] = min(counts[-1], max(ACROSS, MATRICES // counts[-2]))
    most[-2] = MATRICES // most[-1]
  kept = [p.spread(*pair) for pair in zip(counts, most, strict=True)]
  names = [axis.name for axis in p.choices_of(panel)]
  every = zip(names, kept, counts, strict=True)
  drawn = [f'{len(few)} of {many} ({name})' for name, few, many in every if len(few) < many]
  return p.part(panel, kept), f'drawn: {", ".join(drawn)}; the page has all'


def label_matrix(axes, pair, letters, at_left, at_foot, count, before=''):
  """Names of the axes at the left and below, and labels where they are few enough to be read."""
  for along, axis, here in ((axes.yaxis, pair[0], at_left), (axes.xaxis, pair[1], at_foot)):
    if not here:
      along.set_ticks(())
      continue
    most = LABELS if count == 1 else SMALL_LABELS
    ticks = ticks_of(len(axis.labels), most) if numeric(axis) else range(len(axis.labels))
    ticks = ticks if len(ticks) <= most else ()
    upright = along is axes.xaxis and any(columns(axis.labels[i]) > 2 for i in ticks)
    shown = [letters.say(axis.labels[i], LETTERS) for i in ticks]
    along.set_ticks(ticks, shown, rotation=90 if upright else 0)
    for label in along.get_ticklabels():
      label.set(**letters.style(fontsize=8 if count == 1 else 6))
    name = letters.plain(axis.name)
    along.set_label_text(before + name if along is axes.yaxis else name, **letters.style(fontsize=8))


def numeric(axis):
  return all(label.lstrip('-').replace('.', '', 1).isdigit() for label in axis.labels)


def write_cells(axes, matrix, texts, shown, letters, across):
  """The text of each cell, as much of it as a cell has room for."""
  room = max(6, 130 // across)
  for (row, column), value in np.ndenumerate(matrix):
    colour = figures.ink(shown.to_rgba(value)) if math.isfinite(value) else 'black'
    place = dict(ha='center', va='center', fontsize=7, color=colour)
    text = axes.text(column, row, letters.say(texts[row][column], room), **letters.style(**place))
    text.set_in_layout(False)  # it is within: measuring each takes long
