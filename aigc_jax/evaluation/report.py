"""Predictions and their scores, as files and as tables for people."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from aigc_jax import files
from aigc_jax.evaluation.scores import Score
from aigc_jax.typography import columns

COLUMN = 36  # columns of a terminal that a cell takes at most


def write(folder, rows: Sequence[Mapping[str, Any]], scores: Sequence[Score], settings: Mapping[str, Any]):
  """Writes predictions.jsonl, an object for each row, and scores.json beside it. Returns the former's path.

  settings: how the predictions were made. Raises StorageError.
  """
  folder = pathlib.Path(folder)
  with files.storage_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
  lines = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
  files.write_atomically(folder / 'predictions.jsonl', lines)
  found = {score.name: {'value': score.value, 'protocol': score.protocol} for score in scores}
  files.write_json(folder / 'scores.json', {'scores': found, 'settings': dict(settings)})
  return folder / 'predictions.jsonl'


def table(rows: Sequence[Mapping[str, str]]) -> str:
  """Rows of texts under the names of their columns, aligned as terminals draw wide characters; long texts are cut."""
  names = list(rows[0]) if rows else []
  cells = [names] + [[_one_line(row[name]) for name in names] for row in rows]
  widths = [max(map(columns, column)) for column in zip(*cells, strict=True)]
  padded = lambda cell, width: cell + ' ' * (width - columns(cell))
  lines = ['  '.join(map(padded, line, widths)).rstrip() for line in cells]
  return '\n'.join(lines)


def _one_line(text):
  text = ' '.join(text.split())
  if columns(text) <= COLUMN:
    return text
  while columns(text) > COLUMN - 1:
    text = text[:-1]
  return text + '…'
