"""What pictures drawn by matplotlib share: a figure as an array, and text on coloured cells."""

import numpy as np

from aigc_jax.typography import BREAK, UNKNOWN, columns

WIDTH = 72  # columns of a line of cells
DARK = 0.13  # the luminance of a colour below which text on it is white


def cells(tokens: list[bytes]) -> list[list[tuple[str, int, int]]]:
  """For each token its characters with their line and column; a character of several tokens belongs to its last one."""
  found, held, line, column = [], b'', 0, 0
  for token in tokens:
    held += token
    text = held.decode('utf-8', 'ignore')
    held = held[len(text.encode('utf-8')) :] if held.startswith(text.encode('utf-8')) else b''
    placed = []
    for character in text:
      shown = BREAK if character == '\n' else ' ' if character.isspace() else character
      width = columns(shown)
      if column + width > WIDTH:
        line, column = line + 1, 0
      placed.append((shown, line, column))
      line, column = (line + 1, 0) if character == '\n' else (line, column + width)
    found.append(placed)
  return found


def lines_of(placed) -> int:
  """The number of lines that cells take, at least one."""
  return 1 + max((line for token in placed for _, line, _ in token), default=0)


def draw_cells(axes, placed, colours, families, missing):
  """Draws cells on axes of matplotlib, which then show WIDTH columns and the lines of the text.

  Args:
    placed: of `cells`. colours: RGBA of each token, from 0 to 1.
    families, missing: of `typography.fonts_for`; what is missing is drawn as UNKNOWN.
  """
  from matplotlib.collections import PatchCollection
  from matplotlib.patches import Rectangle

  boxes, behind = [], []
  for token, colour in zip(placed, colours, strict=True):
    for character, line, column in token:
      width = columns(character)
      boxes.append(Rectangle((column, line), width, 0.92))
      behind.append(colour)
      text = UNKNOWN if character in missing else character
      place = column + width / 2, line + 0.5
      style = dict(family=families, fontsize=9, ha='center', va='center', color=ink(colour))
      axes.text(*place, text, **style).set_in_layout(False)  # it is within: measuring each takes long
  axes.add_collection(PatchCollection(boxes, facecolors=behind, linewidths=0), autolim=False)
  axes.set(xlim=(0, WIDTH), ylim=(lines_of(placed), 0))
  axes.axis('off')


def ink(colour) -> str:
  """'black' or 'white': what is legible on an RGBA colour that lies on white."""
  red, green, blue, alpha = colour
  linear = [(alpha * part + 1 - alpha) ** 2.2 for part in (red, green, blue)]
  return 'white' if np.dot(linear, (0.2126, 0.7152, 0.0722)) < DARK else 'black'


def rendered(figure) -> np.ndarray:
  """A matplotlib figure as uint8 [height, width, 3]."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg

  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.array(canvas.buffer_rgba())[..., :3]
