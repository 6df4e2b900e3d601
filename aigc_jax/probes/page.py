"""A probe as one HTML page that needs no network and no other file: the panels, to choose and point at."""

import base64
import html
import json
import math
from importlib import resources

import numpy as np

from aigc_jax.probes import drawing
from aigc_jax.probes import panels as p

NUMBERS = 3_000_000  # of a panel at most; of larger ones choices are left out, and then rows and columns
IMAGES = 1500  # of a panel at most
SCRIPTS = ('basics.js', 'heat.js', 'text.js', 'panels.js')


def as_html(probe):
  """The page. Raises UsageError where a panel holds nothing."""
  p.check(probe)
  folder = resources.files('aigc_jax.probes') / 'page'
  read = lambda name: (folder / name).read_text(encoding='utf-8')
  parts = {
    'TITLE': html.escape(probe.title),
    'STYLE': read('probe.css'),
    'DATA': as_json(probe),
    'SCRIPT': '\n'.join(read(name) for name in SCRIPTS),
  }
  text = read('probe.html')
  for name, value in parts.items():
    before, _, after = text.partition(f'<!--{name}-->')
    text = before + value + after
  return text


def in_frame(probe, height=760):
  """The page as a frame of another, such as a notebook, which it can neither read nor change."""
  inner = html.escape(as_html(probe), quote=True)
  style = f'width:100%;height:{height}px;border:0;resize:vertical;overflow:auto'
  return f'<iframe sandbox="allow-scripts" style="{style}" srcdoc="{inner}"></iframe>'


def as_json(probe):
  """{title, notes, panels, arrays: [{shape, values}]}, where a panel names its array by its place among them."""
  arrays = {}  # id of an array and what is shown of it -> (its place, the array, kept from being replaced by another)
  panels = [DATA[type(panel)](panel, arrays) for panel in probe.panels]
  facts = {'name': probe.name, 'title': probe.title, 'notes': probe.notes, 'panels': panels}
  numbers = ','.join(
    f'{{"shape":{json.dumps(np.shape(values))},"values":[{as_numbers(values)}]}}'
    for _, values, _ in arrays.values()
  )
  text = json.dumps(facts, ensure_ascii=False, allow_nan=False, separators=(',', ':'))
  # what stands in a script may not end it
  return (text[:-1] + f',"arrays":[{numbers}]}}').replace('<', '\\u003c')


def as_numbers(values):
  """Numbers in a row with 4 significant digits; null for NaN, "inf" and "-inf"."""
  flat = np.asarray(values, np.float64).ravel()
  texts = [f'{value:.4g}' for value in flat.tolist()]
  if not np.isfinite(flat).all():
    other = {'nan': 'null', 'inf': '"inf"', '-inf': '"-inf"'}
    texts = [other.get(text, text) for text in texts]
  return ','.join(texts)


def place_of(values, shown, original, arrays):
  """The place of an array among those of the page; panels that show the same of the same array share it."""
  key = id(original), json.dumps(shown)
  if key not in arrays:
    arrays[key] = len(arrays), values, original
  return arrays[key][0]


def of_heat(panel, arrays):
  shown = fitting(panel)
  small = p.part(panel, shown) if shown else panel
  return {
    'kind': 'heat',
    **common(panel, small, shown, arrays),
    'axes': [axis._asdict() for axis in small.axes],
    'details': small.details,
    'cells': small.cells,
  }


def of_text(panel, arrays):
  shown = fitting(panel)
  small = p.part(panel, shown) if shown else panel
  others = panel.others if panel.others is not None and list(panel.others) != list(panel.tokens) else None
  return {
    'kind': 'text',
    **common(panel, small, shown, arrays),
    'tokens': list(panel.tokens),
    'others': others and list(others),
    'pairwise': panel.pairwise,
    'details': panel.details,
    'unit': panel.unit,
  }


def common(panel, small, shown, arrays):
  choices = p.choices_of(small)
  counts = [
    (axis.name, len(places), len(axis.labels)) for axis, places in zip(panel.axes, shown, strict=False)
  ]
  less = [f'{few} of {many} ({name})' for name, few, many in counts if few < many]
  return {
    'title': panel.title,
    'array': place_of(small.values, shown, panel.values, arrays),
    'choices': [axis._asdict() for axis in choices],
    'colours': panel.colours,
    'note': f'Too large for a page: here are {", ".join(less)}; the arrays have all.' if less else '',
  }


def fitting(panel):
  """Indices for each of the first axes of a panel, so that at most NUMBERS numbers are left; [] where all may stay.

  Choices are thinned first, where there are most of them, and then rows and columns.
  """
  shape, choices = np.shape(panel.values), len(p.choices_of(panel))
  counts = list(shape)
  for axes in (range(choices), range(choices, len(panel.axes))):
    while math.prod(counts) > NUMBERS and any(counts[i] > 1 for i in axes):
      most = max(axes, key=lambda i: counts[i])
      counts[most] = max(1, counts[most] * 9 // 10)
  thinned = [i for i, count in enumerate(counts) if count < shape[i]]
  return [p.spread(shape[i], counts[i]) for i in range(max(thinned, default=-1) + 1)]


def of_pictures(panel, arrays):
  del arrays
  images = np.asarray(panel.images)
  across = p.spread(images.shape[1], IMAGES)
  down = p.spread(images.shape[0], max(1, IMAGES // len(across)))
  left_out = len(down) < images.shape[0] or len(across) < images.shape[1]
  part = lambda axis, kept: {'name': axis.name, 'labels': [axis.labels[i] for i in kept]}
  return {
    'kind': 'pictures',
    'title': panel.title,
    'rows': part(panel.rows, down),
    'columns': part(panel.columns, across),
    'height': images.shape[2],
    'width': images.shape[3],
    'images': [[as_source(images[row, column]) for column in across] for row in down],
    'note': f'Here are {len(down)} x {len(across)} of {images.shape[0]} x {images.shape[1]}.'
    if left_out
    else '',
  }


def as_source(image):
  """An image [height, width, channels] as the source of one in a page."""
  if image.dtype != np.uint8:
    image = np.round(np.clip(np.nan_to_num(image.astype(np.float32)), 0, 1) * 255).astype(np.uint8)
  png = drawing.as_png(np.broadcast_to(image, (*image.shape[:2], 3)))
  return f'data:image/png;base64,{base64.b64encode(png).decode()}'


def of_bars(panel, arrays):
  return {
    'kind': 'bars',
    'title': panel.title,
    'array': place_of(panel.values, [], panel.values, arrays),
    'axis': panel.axis._asdict(),
    'unit': panel.unit,
    'note': '',
  }


DATA = {p.Heat: of_heat, p.Text: of_text, p.Pictures: of_pictures, p.Bars: of_bars}
