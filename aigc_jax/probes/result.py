"""What a probe found: panels for people, arrays for programs; saved as PNG, as a page and as arrays.

`drawing` makes the PNG, `page` the HTML page, which has all that the PNG leaves out.
"""

import io
import pathlib
from typing import NamedTuple

import numpy as np

from aigc_jax import files
from aigc_jax.probes import drawing, page


class Probe(NamedTuple):
  """All that a probe found. Everything that shows or saves it raises UsageError where a panel holds nothing to show."""

  name: str  # 'attention': of its files
  title: str  # 'attention of runs/mine, step 1500'
  panels: list
  arrays: dict  # {name: array}: what is saved as arrays
  notes: str = ''  # how to read it, and the source; one paragraph

  def save(self, folder):
    """Writes NAME.png, NAME.html and NAME.npz, each of which appears whole or not at all; makes the folder.

    Returns their paths. Raises UsageError, StorageError.
    """
    made = {'png': drawing.as_png(self.picture()), 'html': page.as_html(self), 'npz': as_npz(self.arrays)}
    folder = pathlib.Path(folder)
    with files.storage_errors(folder):
      folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f'{self.name}.{ending}' for ending in made]
    for path, content in zip(paths, made.values(), strict=True):
      files.write_atomically(path, content)
    return paths

  def picture(self):
    """uint8 [height, width, 3]: the panels below one another."""
    return drawing.picture(self)

  def _repr_html_(self):
    """The page, for notebooks."""
    return page.in_frame(self)


def as_npz(arrays):
  """Arrays as the bytes of an .npz file; bfloat16, which numpy does not read back, as float32."""
  content = io.BytesIO()
  plain = lambda array: array.astype(np.float32) if array.dtype.kind == 'V' else array
  np.savez_compressed(content, **{name: plain(np.asarray(array)) for name, array in arrays.items()})
  return content.getvalue()
