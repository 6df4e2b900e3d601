"""What all pictures of panels share: figures of one width, letters that fonts have, scales of colours."""

import itertools
import textwrap

from aigc_jax import figures
from aigc_jax.typography import UNKNOWN, columns, fonts_for, visible

WIDTH = figures.WIDTH / 7  # inches
DPI = 110
LETTERS = 14  # columns of a label


class Letters:
  """The fonts that have the characters of some texts; what none of them has is said as UNKNOWN."""

  def __init__(self, texts):
    self.families, self.missing = fonts_for(''.join(map(visible, texts)))

  def plain(self, text):
    """Text for people."""
    return ''.join(UNKNOWN if character in self.missing else character for character in text)

  def say(self, text, most=None):
    """A token or label, visible, cut to so many columns."""
    text = self.plain(visible(text))
    if most is not None and columns(text) > most:
      while columns(text) > most - 1:
        text = text[:-1]
      text += '…'
    return text

  def style(self, **style):
    """Of a text that is drawn: its fonts, and that a dollar sign is no formula."""
    return {'family': self.families, 'parse_math': False, **style}

  def title(self, panel, left_out=''):
    lines = [self.plain(panel.title)]
    if self.missing:
      lines.append('no installed font has all characters')
    return '\n'.join([*lines, left_out] if left_out else lines)


def figure_of(height, width=WIDTH):
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), dpi=DPI, layout='constrained')


def wrapped(text, width):
  """Lines of at most so many columns."""
  lines = []
  for line in textwrap.wrap(text, width):
    while columns(line) > width:  # Chinese has no spaces, and is twice as wide
      cut = next(i for i in range(len(line), 0, -1) if columns(line[:i]) <= width)
      lines, line = [*lines, line[:cut]], line[cut:]
    lines.append(line)
  return lines


def ticks_of(count, most):
  """At most so many of `count` places, in even steps from 0: of 1, 2, 5, 10, ... places."""
  steps = (digit * 10**power for power in itertools.count() for digit in (1, 2, 5))
  return range(0, count, next(step for step in steps if step * most >= count))


def scale_of(limits, name):
  """What turns numbers within limits into colours of a map of matplotlib."""
  from matplotlib import colormaps
  from matplotlib.cm import ScalarMappable
  from matplotlib.colors import Normalize

  return ScalarMappable(Normalize(*limits), colormaps[name].with_extremes(bad='0.8'))
