"""What a probe found, for people: matrices, texts, pictures and bars."""

from typing import Any, NamedTuple


class Axis(NamedTuple):
  name: str
  labels: list


def numbered(name, count):
  return Axis(name, [str(i) for i in range(count)])


class Heat(NamedTuple):
  title: str
  values: Any
  axes: tuple
  colours: str = 'sequential'
  details: Any = None
  cells: Any = None


class Text(NamedTuple):
  title: str
  tokens: list
  values: Any
  axes: tuple
  others: list | None = None
  pairwise: bool = False
  colours: str = 'sequential'
  details: list | None = None
  unit: str = ''


class Pictures(NamedTuple):
  title: str
  images: Any
  rows: Axis
  columns: Axis


class Bars(NamedTuple):
  title: str
  values: Any
  axis: Axis
  unit: str = ''


class Probe(NamedTuple):
  name: str
  title: str
  panels: list
  arrays: dict
  notes: str = ''
