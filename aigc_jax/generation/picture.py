"""A picture of a text that a model wrote: behind each token, how probable the model found it."""

import math

import numpy as np

from aigc_jax.figures import WIDTH, cells, draw_cells, lines_of, rendered
from aigc_jax.generation.text import Completion
from aigc_jax.typography import END, fonts_for

LEAST = 1e-4  # the probability from which on the colour is the last one


def draw(completion: Completion, tokenizer) -> np.ndarray:
  """The text of a completion as an image [height, width, 3] uint8, with a scale of probabilities."""
  from matplotlib.cm import ScalarMappable
  from matplotlib.colors import LogNorm
  from matplotlib.figure import Figure

  piece = lambda token: END.encode() if token == tokenizer.end_of_text else tokenizer.pieces[token]
  placed = cells([piece(token) for token in completion.tokens])
  families, missing = fonts_for(''.join(character for token in placed for character, _, _ in token))
  figure = Figure(figsize=(WIDTH / 7, 1.0 + 0.3 * lines_of(placed)), layout='constrained')
  axes = figure.add_subplot()
  scale = ScalarMappable(LogNorm(LEAST, 1), 'RdYlGn')
  chances = [max(math.exp(nats), LEAST) for nats in completion.log_probabilities]
  draw_cells(axes, placed, [scale.to_rgba(chance, alpha=0.75) for chance in chances], families, missing)
  axes.set(title=title(completion, missing))
  figure.colorbar(scale, ax=axes, location='bottom', aspect=60, shrink=0.6, label='probability of the token')
  return rendered(figure)


def title(completion, missing):
  mean = sum(completion.log_probabilities) / max(len(completion.tokens), 1)
  text = f'{len(completion.tokens)} tokens, perplexity {math.exp(min(-mean, 700)):.3g}'
  return f'{text}; no installed font has all characters' if missing else text
