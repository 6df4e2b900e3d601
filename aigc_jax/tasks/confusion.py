"""What a classifier takes for what, as a table and as pictures. All on the host."""

import numpy as np

from aigc_jax.figures import rendered
from aigc_jax.typography import columns, fonts_for

COUNTED = 20  # up to as many classes have their counts written into the picture


def complete_names(names, classes):
  """The names of all classes; those without one are called by their number."""
  return [str(name) for name in names] + [str(i) for i in range(len(names), classes)]


def table(counts, names):
  """Counts [true, predicted] as text: a row for each true class, with the part of it that is right."""
  width = max(5, *map(columns, names), len(str(counts.max())))
  corner = 'true, predicted'
  first = max(len(corner), *map(columns, names))
  left = lambda cell: cell + ' ' * (first - columns(cell))
  line = lambda cells: ' '.join(' ' * (width - columns(cell)) + cell for cell in map(str, cells))
  lines = [f'{left(corner)} {line(names)}  accuracy']
  for i, name in enumerate(names):
    total = counts[i].sum()
    share = f'{counts[i, i] / total:8.1%}' if total else '       -'
    lines.append(f'{left(name)} {line(counts[i])}  {share}')
  total = counts.sum()
  lines.append(f'{left("all")} {line(counts.sum(0))}  {np.trace(counts) / max(total, 1):8.1%}')
  return '\n'.join(lines) + '\n'


def legible(names):
  """(names, font families that have their characters); where no installed font has them, the numbers of the classes."""
  families, missing = fonts_for(''.join(names))
  if not missing:
    return names, families
  return [str(i) for i in range(len(names))], ['DejaVu Sans']


def picture(counts, names):
  """Counts [true, predicted] -> image uint8 [height, width, 3]; a cell's shade is its part of the row."""
  from matplotlib.figure import Figure  # a picture in a hundred steps: not at every start

  names, families = legible(names)
  side = min(12.0, 3.0 + 0.45 * len(names))
  figure = Figure(figsize=(side, side), dpi=120, layout='constrained')
  axes = figure.add_subplot()
  shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  if len(names) <= COUNTED:
    for (row, column), count in np.ndenumerate(counts):
      shade = 'white' if shares[row, column] > 0.5 else 'black'
      axes.text(column, row, count, ha='center', va='center', fontsize=7, color=shade)
  ticks = range(len(names)) if len(names) <= 50 else ()
  axes.set_xticks(ticks, [names[i] for i in ticks], rotation=90, fontfamily=families)
  axes.set_yticks(ticks, [names[i] for i in ticks], fontfamily=families)
  axes.set(xlabel='predicted', ylabel='true', title=f'{np.trace(counts) / max(counts.sum(), 1):.2%} right')
  return rendered(figure)


def mistakes_picture(mistakes, names, across=6):
  """[(confidence, image [height, width, channels], true class, predicted class)] -> image uint8 [height, width, 3]."""
  from matplotlib.figure import Figure

  (names, families), rows = legible(names), -(-len(mistakes) // across)
  figure = Figure(figsize=(1.7 * across, 1.9 * rows), dpi=120, layout='constrained')
  for axes in (grid := figure.subplots(rows, across, squeeze=False)).flat:
    axes.axis('off')
  for axes, (confidence, image, label, found) in zip(grid.flat, mistakes, strict=False):
    top = 255 if image.dtype == np.uint8 else 1
    axes.imshow(image[..., 0] if image.shape[-1] != 3 else image, cmap='gray', vmin=0, vmax=top)
    axes.set_title(f'{names[label]},\nnot {names[found]} ({confidence:.0%})', fontsize=7, fontfamily=families)
  return rendered(figure)
