"""Markdown: tables, fences, numbers, and paths that say nothing of the machine they are from."""

import math
import re

LOCAL = re.compile(r'((?:--[\w.]+=)?(?:\w+:)?)(?:~|/)(?:.*/)?([^/]+)/?')


def shortened(value):
  """A text without the folders of an absolute path in it: 'text:/home/me/book.txt' -> 'text:book.txt'."""
  found = LOCAL.fullmatch(value)
  return found[1] + found[2] if found else value


def public(value):
  """A config, or a part of it, with all its texts shortened."""
  if isinstance(value, dict):
    return {name: public(part) for name, part in value.items()}
  if isinstance(value, list | tuple):
    return [public(part) for part in value]
  return shortened(value) if isinstance(value, str) else value


def number(value) -> str:
  """A number for people: four digits that count, thousands set apart."""
  value = float(value)
  if not math.isfinite(value):
    return 'not finite'
  if value == int(value) or abs(value) >= 1000:
    return f'{value:,.0f}'
  return f'{value:.4g}'


def cell(text) -> str:
  return str(text).replace('|', '\\|').replace('\n', ' ')


def table(head, rows) -> list[str]:
  """Lines of a table; columns behind the first are what is compared."""
  line = lambda cells: f'| {" | ".join(map(cell, cells))} |'
  return [line(head), f'|{"---|" * len(head)}', *map(line, rows)]


def fenced(text, kind='text') -> list[str]:
  """A text as it is, behind a fence that is longer than any in it."""
  longest = max((len(run) for run in re.findall('`+', text)), default=0)
  fence = '`' * max(3, longest + 1)
  return [f'{fence}{kind}', text, fence]
