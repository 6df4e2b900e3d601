"""A picture of a text that a model wrote: behind each token, how probable the model found it."""

import math

import numpy as np

from aigc_jax.generation.text import Completion
from aigc_jax.typography import columns, fonts_for

WIDTH = 72  # columns of a line
LEAST = 1e-4  # the probability from which on the colour is the last one
# for a line's end, the text's end, and a character that no installed font has
BREAK, END, UNKNOWN = '⏎', '∎', '□'


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


def draw(completion: Completion, tokenizer) -> np.ndarray:
  """The text of a completion as an image [height, width, 4] uint8, with a scale of probabilities."""
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.cm import ScalarMappable
  from matplotlib.colors import LogNorm
  from matplotlib.figure import Figure
  from matplotlib.patches import Rectangle

  piece = lambda token: END.encode() if token == tokenizer.end_of_text else tokenizer.pieces[token]
  placed = cells([piece(token) for token in completion.tokens])
  shown = [cell for token in placed for cell in token]
  lines = 1 + max((line for _, line, _ in shown), default=0)
  families, missing = fonts_for(''.join(character for character, _, _ in shown))
  figure = Figure(figsize=(WIDTH / 7, 1.0 + 0.3 * lines), layout='constrained')
  axes = figure.add_subplot()
  scale = ScalarMappable(LogNorm(LEAST, 1), 'RdYlGn')
  for token, nats in zip(placed, completion.log_probabilities, strict=True):
    colour = scale.to_rgba(max(math.exp(nats), LEAST), alpha=0.75)
    for character, line, column in token:
      width = columns(character)
      axes.add_patch(Rectangle((column, line), width, 0.92, facecolor=colour, linewidth=0))
      text = UNKNOWN if character in missing else character
      place = column + width / 2, line + 0.5
      axes.text(*place, text, family=families, fontsize=9, ha='center', va='center')
  axes.set(xlim=(0, WIDTH), ylim=(lines, 0), title=title(completion, missing))
  axes.axis('off')
  figure.colorbar(scale, ax=axes, location='bottom', aspect=60, shrink=0.6, label='probability of the token')
  canvas = FigureCanvasAgg(figure)
  canvas.draw()
  return np.asarray(canvas.buffer_rgba())


def title(completion, missing):
  mean = sum(completion.log_probabilities) / max(len(completion.tokens), 1)
  text = f'{len(completion.tokens)} tokens, perplexity {math.exp(min(-mean, 700)):.3g}'
  return f'{text}; no installed font has all characters' if missing else text
