"""A probe as one picture, by matplotlib: its panels below one another. What it leaves out it says; the page has all."""

import math
import textwrap

import numpy as np

from aigc_jax import figures
from aigc_jax.probes import panels as p
from aigc_jax.typography import BREAK, UNKNOWN, columns, fonts_for, visible

WIDTH = figures.WIDTH / 7  # inches
DPI = 110
GAP = 16  # pixels between panels
MATRICES, ACROSS = 64, 12  # small ones of a panel at most, and beside one another
LABELS, LETTERS = 48, 14  # of an axis that is labelled, and columns of a label
SMALL_LABELS = 10  # of an axis of one of several matrices
CELLS, STRIP = (
  (48, 256),
  16,
)  # rows and columns of a matrix whose cells have text, and columns beside one another
DRAWN_COLUMNS, TEXTS = 3000, 4  # of all texts of a panel at most, and texts of it
IMAGES = 40, 24  # rows and columns of images at most
BARS = 60  # that have a label each
MAPS = {'sequential': 'viridis', 'diverging': 'RdBu_r'}
TEXT_MAPS = {'sequential': 'YlOrBr', 'diverging': 'RdBu_r'}
NOTE = dict(fontsize=8, color='0.35')


def picture(probe):
  """uint8 [height, width, 3]. Raises UsageError where a panel holds nothing."""
  p.check(probe)
  parts = [heading(probe), *(DRAWN[type(panel)](panel) for panel in probe.panels)]
  width = max(part.shape[1] for part in parts)
  padded = [
    np.pad(part, ((0, GAP), (0, width - part.shape[1]), (0, 0)), constant_values=255) for part in parts
  ]
  return np.concatenate(padded)


class Letters:
  """The fonts that have the characters of some texts; what none of them has is said as UNKNOWN."""

  def __init__(self, texts):
    self.families, self.missing = fonts_for(''.join(map(visible, texts)))

  def say(self, text, most=None):
    """Visible text, cut to so many columns."""
    text = ''.join(UNKNOWN if character in self.missing else character for character in visible(text))
    if most is not None and columns(text) > most:
      while columns(text) > most - 1:
        text = text[:-1]
      text += '…'
    return text

  def style(self, **style):
    """Of a text that is drawn: its fonts, and that a dollar sign is no formula."""
    return {'family': self.families, 'parse_math': False, **style}

  def title(self, panel, left_out=''):
    lines = [self.say(panel.title)]
    if self.missing:
      lines.append('no installed font has all characters')
    return '\n'.join([*lines, left_out] if left_out else lines)


def figure_of(height, width=WIDTH):
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), dpi=DPI, layout='constrained')


def heading(probe):
  letters = Letters([probe.title, probe.notes])
  lines = (
    [line for text in probe.notes.split('\n') for line in wrapped(letters.say(text), 150)]
    if probe.notes
    else []
  )
  figure = figure_of(height := 0.45 + 0.17 * len(lines))
  figure.text(0.012, 1 - 0.1 / height, letters.say(probe.title), va='top', **letters.style(fontsize=14))
  figure.text(0.012, 1 - 0.42 / height, '\n'.join(lines), va='top', linespacing=1.25, **letters.style(**NOTE))
  return figures.rendered(figure)


def wrapped(text, width):
  """Lines of at most so many columns."""
  lines = []
  for line in textwrap.wrap(text, width):
    while columns(line) > width:  # Chinese has no spaces, and is twice as wide
      cut = next(i for i in range(len(line), 0, -1) if columns(line[:i]) <= width)
      lines, line = [*lines, line[:cut]], line[cut:]
    lines.append(line)
  return lines


def draw_heat(panel):
  """A matrix, or small ones over its choices: a row for each of the last but one, a column for each of the last."""
  low, high = p.limits(panel.values, panel.colours)
  panel, left_out = within(panel)
  letters = Letters([panel.title, *(text for axis in panel.axes for text in [axis.name, *axis.labels])])
  shown = scale_of(low, high, colour_map(MAPS, panel))
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
    named = [f'{axis.name} {label}'.strip() for axis, label in places_of(choices, i)]
    if len(choices) > 1:  # the rows are named at the left, the columns above
      axes.set_title(letters.say(named[-1], 24) if at_top else '', **letters.style(fontsize=8))
    else:
      axes.set_title(letters.say(', '.join(named), 24) if named else '', **letters.style(fontsize=8))
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
  drawn = [
    f'{len(k)} of {n} ({axis.name})'
    for k, n, axis in zip(kept, counts, panel.axes, strict=False)
    if len(k) < n
  ]
  return p.part(panel, kept), f'drawn: {", ".join(drawn)}; the page has all'


def colour_map(maps, panel):
  from matplotlib import colormaps

  return colormaps[maps[panel.colours]].with_extremes(bad='0.8')


def places_of(axes, i):
  """[(Axis, label)] of place `i` among all of some axes, the last the fastest."""
  found = np.unravel_index(i, [len(axis.labels) for axis in axes]) if axes else ()
  return [(axis, axis.labels[place]) for axis, place in zip(axes, found, strict=True)]


def label_matrix(axes, pair, letters, at_left, at_foot, count, before=''):
  """Names of the axes at the left and below, and labels where they are few enough to be read."""
  for along, axis, shown in ((axes.yaxis, pair[0], at_left), (axes.xaxis, pair[1], at_foot)):
    if not shown:
      along.set_ticks(())
      continue
    most = LABELS if count == 1 else SMALL_LABELS
    ticks = p.spread(len(axis.labels), most) if numeric(axis) else range(len(axis.labels))
    ticks = ticks if len(ticks) <= most else ()
    upright = along is axes.xaxis and any(columns(axis.labels[i]) > 2 for i in ticks)
    along.set_ticks(
      ticks, [letters.say(axis.labels[i], LETTERS) for i in ticks], rotation=90 if upright else 0
    )
    for label in along.get_ticklabels():
      label.set(**letters.style(fontsize=8 if count == 1 else 6))
    name = letters.say(axis.name) if axis.name else ''
    along.set_label_text(before + name if along is axes.yaxis else name, **letters.style(fontsize=8))


def numeric(axis):
  return all(label.lstrip('-').replace('.', '', 1).isdigit() for label in axis.labels)


def write_cells(axes, matrix, texts, shown, letters, across):
  """The text of each cell, as much of it as a cell has room for."""
  room = max(6, 130 // across)
  for (row, column), value in np.ndenumerate(matrix):
    colour = figures.ink(shown.to_rgba(value)) if math.isfinite(value) else 'black'
    place = dict(ha='center', va='center', fontsize=7, color=colour)
    axes.text(column, row, letters.say(texts[row][column], room), **letters.style(**place)).set_in_layout(
      False
    )


def draw_text(panel):
  """The text on its colours, for each of some choices; of pairs, for some of its tokens."""
  low, high = p.limits(panel.values, panel.colours)
  values, choices = np.asarray(panel.values, np.float64), p.choices_of(panel)
  blocks, tokens, left_out = blocks_of(panel, values, choices)
  letters = Letters([panel.title, panel.unit, *(name for name, _ in blocks), *tokens])
  placed = figures.cells([visible(token).replace(BREAK, '\n').encode() for token in tokens])
  lines, extra = figures.lines_of(placed), 0.45 if blocks[0][0] else 0.1
  figure = figure_of(1.35 + len(blocks) * (0.3 * lines + extra))
  grid = figure.subplots(len(blocks), 1, squeeze=False)
  for axes, (name, numbers) in zip(grid.flat, blocks, strict=True):
    shown = scale_of(low, high, colour_map(TEXT_MAPS, panel))
    colours = [
      shown.to_rgba(number, alpha=0.75) if math.isfinite(number) else (1, 1, 1, 0) for number in numbers
    ]
    figures.draw_cells(axes, placed, colours, letters.families, letters.missing)
    axes.set_title(name and letters.say(name), loc='left', **letters.style(fontsize=9))
  figure.colorbar(shown, ax=grid, location='bottom', aspect=60, shrink=0.6, label=panel.unit)
  figure.suptitle(letters.title(panel, left_out), x=0.012, ha='left', **letters.style(fontsize=11))
  return figures.rendered(figure)


def blocks_of(panel, values, choices):
  """([(name, a number for each token)], the tokens, what was left out) of a Text."""
  tokens, said = p.others_of(panel) if panel.pairwise else panel.tokens, []
  flat = values.reshape(-1, len(tokens))  # [choices, or choices and tokens, tokens]
  places = [*choices, p.Axis('token', panel.tokens)] if panel.pairwise else choices
  if panel.pairwise:  # one choice of each, and some tokens of it
    flat = flat[: len(panel.tokens)]
    kept = p.spread(len(flat), TEXTS)
    where = ', '.join(f'{axis.name} {axis.labels[0]}' for axis in choices)
    if len(kept) < len(values.reshape(-1, len(tokens))):
      said.append(f'drawn: {len(kept)} of {len(flat)} tokens' + (f' of {where}' if where else ''))
  else:
    kept = p.spread(len(flat), TEXTS)
    if len(kept) < len(flat):
      said.append(f'drawn: {len(kept)} of {len(flat)}')
  ends = np.cumsum([columns(visible(token)) for token in tokens])
  most = max(1, int(np.searchsorted(ends, DRAWN_COLUMNS // len(kept), 'right')))
  if len(tokens) > most:
    said.append(f'the first {most:,} of {len(tokens):,} tokens of the text')
  names = [', '.join(f'{axis.name} {visible(label)}' for axis, label in places_of(places, i)) for i in kept]
  return (
    [(name, flat[i, :most]) for name, i in zip(names, kept, strict=True)],
    tokens[:most],
    ', '.join(said) + '; the page has all' if said else '',
  )


def scale_of(low, high, colours):
  from matplotlib.cm import ScalarMappable
  from matplotlib.colors import Normalize

  return ScalarMappable(Normalize(low, high), colours)


def draw_pictures(panel):
  images = np.asarray(panel.images)
  rows, across = (p.spread(count, most) for count, most in zip(images.shape[:2], IMAGES, strict=True))
  letters = Letters(
    [panel.title, *(text for axis in (panel.rows, panel.columns) for text in [axis.name, *axis.labels])]
  )
  side = min(1.6, (WIDTH - 1) / len(across))
  figure = figure_of(
    1 + len(rows) * (side * images.shape[2] / images.shape[3] + 0.05), max(5, 1 + side * len(across))
  )
  figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
  grid = figure.subplots(len(rows), len(across), squeeze=False)
  top = 255 if images.dtype == np.uint8 else 1
  small = letters.style(fontsize=8 if side > 0.8 else 6)
  for r, row in enumerate(rows):
    for c, column in enumerate(across):
      image, axes = images[row, column], grid[r, c]
      image = image[..., 0] if image.shape[-1] == 1 else np.clip(image, 0, top)
      axes.imshow(image, cmap='gray', vmin=0, vmax=top, interpolation='nearest')
      axes.set(xticks=(), yticks=())
      axes.spines[:].set_visible(False)
      if r == 0 and panel.columns.labels[column]:
        axes.set_title(letters.say(panel.columns.labels[column], LETTERS), **small)
      if c == 0 and panel.rows.labels[row]:
        text = letters.say(panel.rows.labels[row], 24)
        axes.set_ylabel(text, rotation=0, ha='right', va='center', **small)
  whole = len(rows) == images.shape[0] and len(across) == images.shape[1]
  left_out = (
    '' if whole else f'{len(rows)} x {len(across)} of {images.shape[0]} x {images.shape[1]}; the page has all'
  )
  names = [
    f'{axis.name} {word}' for axis, word in ((panel.rows, 'down'), (panel.columns, 'across')) if axis.name
  ]
  title = '\n'.join([letters.title(panel, left_out), *([letters.say(', '.join(names))] if names else [])])
  figure.suptitle(title, x=0.012, ha='left', **letters.style(fontsize=11))
  return figures.rendered(figure)


def draw_bars(panel):
  """Horizontal bars with their labels, or of very many a row of them without."""
  values, labels = np.asarray(panel.values, np.float64), panel.axis.labels
  letters = Letters([panel.title, panel.unit, panel.axis.name, *labels])
  few = len(values) <= BARS
  figure = figure_of(1.2 + 0.2 * len(values) if few else 3.2)
  axes = figure.add_subplot()
  shown = np.where(np.isfinite(values), values, 0)
  along = axes.yaxis if few else axes.xaxis
  if few:
    axes.barh(range(len(values)), shown)
  else:
    axes.bar(range(len(values)), shown, width=1.0)
  ticks = range(len(values)) if few else p.spread(len(values), 24)
  along.set_ticks(ticks, [letters.say(labels[i], 24) for i in ticks], rotation=0 if few else 90)
  for label in along.get_ticklabels():
    label.set(**letters.style(fontsize=8))
  if few:
    axes.set_ylim(len(values) - 0.4, -0.6)
    for i, value in enumerate(values):
      text = f' {value:.3g} ' if math.isfinite(value) else ' none '
      axes.text(shown[i], i, text, va='center', ha='right' if shown[i] < 0 else 'left', fontsize=7)
    axes.margins(x=0.12)
  axes.axvline(0, color='0.3', linewidth=0.8) if few else axes.axhline(0, color='0.3', linewidth=0.8)
  axes.spines[['top', 'right']].set_visible(False)
  number, place = (axes.set_xlabel, axes.set_ylabel) if few else (axes.set_ylabel, axes.set_xlabel)
  number(letters.say(panel.unit) if panel.unit else '', **letters.style(fontsize=8))
  place(letters.say(panel.axis.name) if panel.axis.name else '', **letters.style(fontsize=8))
  figure.suptitle(letters.title(panel), x=0.012, ha='left', **letters.style(fontsize=11))
  return figures.rendered(figure)


DRAWN = {p.Heat: draw_heat, p.Text: draw_text, p.Pictures: draw_pictures, p.Bars: draw_bars}
