"""Files with a record on each line, `tsv:PATH` and `jsonl:PATH` (.gz too), read by the names of their fields.

Columns of TSV are named by its first line, or numbered from 1 where all fields are numbers and no line is a header.
A JSON text may be a list of lines.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from aigc_jax.data import sources, tokenizers
from aigc_jax.errors import DataError, listed, nearest

KINDS = {'tsv': 'tsv:PATH', 'jsonl': 'jsonl:PATH'}


class Record(NamedTuple):
  values: tuple  # a text for each field that was asked for, in that order
  where: str  # file and line, for errors


def open_lines(name: str, kind: str, place: str) -> tuple[Path, str]:
  """(path, sha256) of the file of the source `name`. DataError where it is missing, a folder or empty."""
  path = sources.existing(name, place)
  if path.is_dir():
    raise DataError(f'{name}: {path} is a folder; {kind} takes one file with a record on each line')
  return path, sources.hash_file(name, path)


def read(kind: str, path: Path, fields: Mapping[str, str], numbers: tuple = ()) -> Iterator[Record]:
  """The records of a file of kind 'tsv' or 'jsonl' in order.

  fields: {option of `config.data`: the field or column that it names}.
  numbers: the options whose JSON fields may be whole numbers.
  Raises DataError, with file and line, for a field that is missing, empty or no text.
  """
  lines = _tsv(path, fields) if kind == 'tsv' else _json_lines(path, fields, numbers)
  for record in sources.reading(path, lines):
    for option, value in zip(fields, record.values, strict=True):
      if not value.strip():
        raise DataError(f'{record.where}: the {option.removesuffix("_field")} is empty')
    yield record._replace(values=tuple(map(sources.whole_characters, record.values)))


def _tsv(path, fields):
  columns = None
  if all(_is_number(field) for field in fields.values()):
    columns = tuple(int(field) - 1 for field in fields.values())
  for line, where in sources.lines_of(path):
    cells = line.rstrip('\r\n').split('\t')
    if columns is None:
      columns = tuple(_column(cells, field, where, fields) for field in fields.values())
    elif line.strip():
      if len(cells) <= max(columns):
        raise DataError(f'{where}: {len(cells)} columns set apart by tabs; {max(columns) + 1} are needed')
      yield Record(tuple(cells[column] for column in columns), where)


def _is_number(field):
  return field.isascii() and field.isdigit() and int(field) > 0


def _column(header, field, where, fields):
  if field in header:
    return header.index(field)
  if _is_number(field) and int(field) <= len(header):
    return int(field) - 1
  raise DataError(
    f'{where}: no column {field!r}; {nearest(field, header)}its columns are {listed(header[:8])}; choose by '
    f'{_options(fields)}, by numbers from 1 where the file has no line of names'
  )


def _options(fields):
  return ' and '.join(f'data.{option}' for option in fields)


def _json_lines(path, fields, numbers):
  for record, where in sources.json_records(path):
    values = (_text(record, field, option in numbers, where, fields) for option, field in fields.items())
    yield Record(tuple(values), where)


def _text(record, field, may_be_number, where, fields):
  if field not in record:
    present = listed(list(record)[:8]) or 'none'
    raise DataError(f'{where}: no field {field!r}; its fields are {present}; choose by {_options(fields)}')
  value = record[field]
  if isinstance(value, list) and not may_be_number and all(isinstance(line, str) for line in value):
    return '\n'.join(value)
  if isinstance(value, str) or (may_be_number and isinstance(value, int) and not isinstance(value, bool)):
    return str(value)
  wanted = 'a string or a whole number' if may_be_number else 'a string or a list of strings'
  raise DataError(f'{where}: field {field!r} holds {sources.kind_of(value)}, not {wanted}')


def check_alphabet(tokenizer, texts) -> None:
  """Raises DataError, with file and line, for characters of `texts` (text, where) that a vocabulary lacks."""
  if 'characters' not in tokenizer.saved:
    return
  known = set(tokenizer.saved['characters'])
  for text, where in texts:
    if unknown := [character for character in text if character not in known]:
      raise DataError(
        f'{where}: outside the vocabulary of {len(known):,} characters: {tokenizers.listed(unknown)}'
      )
