"""A probe as one picture, by matplotlib: its panels below one another. What it leaves out it says; the page has all."""

import io
import itertools
import math

import numpy as np

from aigc_jax import figures
from aigc_jax.probes import panels as p
from aigc_jax.probes.lettering import LETTERS, WIDTH, Letters, figure_of, scale_of, ticks_of, wrapped
from aigc_jax.probes.matrices import draw_heat
from aigc_jax.typography import BREAK, columns, visible

GAP = 16  # pixels between panels
DRAWN_COLUMNS, TEXTS = 3000, 4  # of all texts of a panel at most, and texts of it
IMAGES = 40, 24  # rows and columns of images at most
BARS = 60  # that have a label each
MAPS = {'sequential': 'YlOrBr', 'diverging': 'RdBu_r'}  # behind text
NOTE = dict(fontsize=8, color='0.35')


def picture(probe):
  """uint8 [height, width, 3]. Raises UsageError where a panel holds nothing."""
  p.check(probe)
  parts = [heading(probe), *(DRAWN[type(panel)](panel) for panel in probe.panels)]
  width = max(part.shape[1] for part in parts)
  room = lambda part: ((0, GAP), (0, width - part.shape[1]), (0, 0))
  return np.concatenate([np.pad(part, room(part), constant_values=255) for part in parts])


def heading(probe):
  letters = Letters([probe.title, probe.notes])
  lines = [line for text in probe.notes.split('\n') for line in wrapped(letters.plain(text), 150)]
  figure = figure_of(height := 0.45 + 0.17 * len(lines))
  figure.text(0.012, 1 - 0.1 / height, letters.plain(probe.title), va='top', **letters.style(fontsize=14))
  figure.text(0.012, 1 - 0.42 / height, '\n'.join(lines), va='top', linespacing=1.25, **letters.style(**NOTE))
  return figures.rendered(figure)


def draw_text(panel):
  """The text on its colours, for each of some choices; of pairs, for some of its tokens."""
  rows, left_out = rows_of(panel)
  tokens, unit = p.others_of(panel) if panel.pairwise else panel.tokens, panel.unit
  ends = np.cumsum([columns(visible(token)) for token in tokens])
  most = max(1, int(np.searchsorted(ends, DRAWN_COLUMNS // len(rows), 'right')))
  if most < len(tokens):
    left_out.append(f'the first {most:,} of {len(tokens):,} tokens of the text')
  left_out = f'drawn: {", ".join(left_out)}; the page has all' if left_out else ''
  letters = Letters([panel.title, unit, *(name for name, _ in rows), *tokens])
  placed = figures.cells([visible(token).replace(BREAK, '\n').encode() for token in tokens[:most]])
  figure = figure_of(1.35 + len(rows) * (0.3 * figures.lines_of(placed) + (0.45 if rows[0][0] else 0.1)))
  grid = figure.subplots(len(rows), 1, squeeze=False)
  shown = scale_of(p.limits([numbers for _, numbers in rows], panel.colours), MAPS[panel.colours])
  for axes, (name, numbers) in zip(grid.flat, rows, strict=True):
    alphas = 0.75 * np.isfinite(numbers[:most])
    figures.draw_cells(
      axes, placed, shown.to_rgba(numbers[:most], alpha=alphas), letters.families, letters.missing
    )
    axes.set_title(letters.plain(name), loc='left', **letters.style(fontsize=9))
  bar = figure.colorbar(shown, ax=grid, location='bottom', aspect=60, shrink=0.6)
  bar.set_label(letters.plain(unit), **letters.style())
  figure.suptitle(letters.title(panel, left_out), x=0.012, ha='left', **letters.style(fontsize=11))
  return figures.rendered(figure)


def rows_of(panel):
  """([(name, a number for each token)], [what was left out]) of some choices, or of some tokens of the first choice."""
  values, choices = np.asarray(panel.values, np.float64), p.choices_of(panel)
  numbers = values.reshape(-1, values.shape[-1])
  if panel.pairwise:
    every, count = len(numbers), len(panel.tokens)
    few = min(count, TEXTS)
    kept = [
      (i + 1) * count // few - 1 for i in range(few)
    ]  # of each stretch the last, which has most before it
    where = ''.join(f', {axis.name} {axis.labels[0]}' for axis in choices)
    left_out = [f'{few} of {count:,} tokens{where}'] if few < every else []
    return [(f'{visible(panel.tokens[i])} →', numbers[i]) for i in kept], left_out
  kept = p.spread(len(numbers), TEXTS)
  left_out = [f'{len(kept)} of {len(numbers):,}'] if len(kept) < len(numbers) else []
  name = lambda i: ', '.join(f'{axis.name} {visible(label)}' for axis, label in p.places_of(choices, i))
  return [(name(i), numbers[i]) for i in kept], left_out


def draw_pictures(panel):
  images = np.asarray(panel.images)
  count, whole = images.shape[:2], (panel.rows, panel.columns)
  rows, across = (p.spread(*pair) for pair in zip(count, IMAGES, strict=True))
  left_out = f'drawn: {len(rows)} x {len(across)} of {count[0]} x {count[1]}; the page has more'
  letters = Letters([panel.title, *(text for axis in whole for text in [axis.name, *axis.labels])])
  side = min(1.6, (WIDTH - 1) / len(across))
  height = side * images.shape[2] / images.shape[3] + 0.05
  figure = figure_of(1 + len(rows) * height, max(5, 1 + side * len(across)))
  figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
  grid = figure.subplots(len(rows), len(across), squeeze=False)
  for (row, column), axes in zip(itertools.product(rows, across), grid.flat, strict=True):
    draw_image(axes, images[row, column])
  small = letters.style(fontsize=8 if side > 0.8 else 6)
  for axes, column in zip(grid[0], across, strict=True):
    if label := panel.columns.labels[column]:
      axes.set_title(letters.say(label, LETTERS), **small)
  for axes, row in zip(grid[:, 0], rows, strict=True):
    if label := panel.rows.labels[row]:
      axes.set_ylabel(letters.say(label, 24), rotation=0, ha='right', va='center', **small)
  names = [f'{axis.name} {word}' for axis, word in zip(whole, ('down', 'across'), strict=True) if axis.name]
  title = letters.title(panel, left_out if (len(rows), len(across)) != count else '')
  title += '\n' + letters.plain(', '.join(names)) if names else ''
  figure.suptitle(title, x=0.012, ha='left', **letters.style(fontsize=11))
  return figures.rendered(figure)


def draw_image(axes, image):
  top = 255 if image.dtype == np.uint8 else 1
  image = image[..., 0] if image.shape[-1] == 1 else np.clip(image, 0, top)
  axes.imshow(image, cmap='gray', vmin=0, vmax=top, interpolation='nearest')
  axes.set(xticks=(), yticks=())
  axes.spines[:].set_visible(False)


def draw_bars(panel):
  """Bars from left to right with their labels, or of very many a row of upright ones."""
  values = np.asarray(panel.values, np.float64)
  letters = Letters([panel.title, panel.unit, panel.axis.name, *panel.axis.labels])
  few = len(values) <= BARS
  figure = figure_of(1.2 + 0.2 * len(values) if few else 3.2)
  axes = figure.add_subplot()
  shown, places = np.where(np.isfinite(values), values, 0), np.arange(len(values))
  if few:
    axes.barh(places, shown)
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.margins(x=0.12)
    axes.axvline(0, color='0.3', linewidth=0.8)
    for place, value in enumerate(values):
      text, side = f' {value:.3g} ' if not math.isnan(value) else ' none ', 'right' if value < 0 else 'left'
      axes.text(shown[place], place, text, va='center', ha=side, fontsize=7)
  else:
    axes.bar(places, shown, width=1.0)
    axes.axhline(0, color='0.3', linewidth=0.8)
  ticks = places if few else ticks_of(len(values), 24)
  names, numbers = (axes.yaxis, axes.xaxis) if few else (axes.xaxis, axes.yaxis)
  names.set_ticks(ticks, [letters.say(panel.axis.labels[i], 24) for i in ticks], rotation=0 if few else 90)
  for label in names.get_ticklabels():
    label.set(**letters.style(fontsize=8))
  for along, name in ((names, panel.axis.name), (numbers, panel.unit)):
    along.set_label_text(letters.plain(name), **letters.style(fontsize=8))
  axes.spines[['top', 'right']].set_visible(False)
  figure.suptitle(letters.title(panel), x=0.012, ha='left', **letters.style(fontsize=11))
  return figures.rendered(figure)


DRAWN = {p.Heat: draw_heat, p.Text: draw_text, p.Pictures: draw_pictures, p.Bars: draw_bars}


def as_png(picture):
  """uint8 [height, width, 3] -> the bytes of a PNG file."""
  from matplotlib import image

  content = io.BytesIO()
  image.imsave(content, picture, format='png')
  return content.getvalue()
