"""Where text comes from: `bundled:NAME`, `text:PATH` (a file, or a folder of *.txt) and `jsonl:PATH[#FIELD]`.

A source is a list of documents, read as a stream of pieces, so memory does not grow with the corpus. Files
that end in .gz are unpacked on the way. Text is UTF-8, strictly; a byte-order mark at its start is dropped,
line ends stay as they are.
"""

import codecs
import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from aigc_jax.errors import DataError, UsageError, listed, nearest

BUNDLED_FOLDER = Path(__file__).parent / 'bundled'
# sha256 of each bundled text; SOURCES.md beside the files says where they come from
BUNDLED = {
  'moby_dick': ('moby_dick.txt.gz', '19029ef240bae36c22a07686dacfc905972c0b054dcb013d9856ce8da5efde4f'),
  'song_ci': ('song_ci.jsonl.gz', '91237e4ab5528973ad46a7264c2aea4f90ce8f79d6c62df908a90149ebf87c3b'),
}
KINDS = {'bundled': 'bundled:moby_dick', 'text': 'text:PATH', 'jsonl': 'jsonl:PATH[#FIELD]'}

READ_BYTES = 1 << 20  # of a file at a time
PIECE_CHARACTERS = 1 << 18  # about the length of a piece


class Piece(NamedTuple):
  text: str
  ends: bool  # the last piece of its document


class Source(NamedTuple):
  """An opened source. `pieces()` reads it from its start, cut where no tokenizer's tokens change by it."""

  name: str  # as written in the config
  files: tuple[Path, ...]
  sha256: str  # of the file as it lies; of a folder, of its `sha256sum *` lines
  reading: str  # how files become documents: a cache of tokens depends on it
  pieces: Callable[[], Iterator[Piece]]

  @property
  def size(self):
    """Bytes of text, roughly: a packed file counts four times."""
    return sum(file.stat().st_size * (4 if file.suffix == '.gz' else 1) for file in self.files)


def open_source(name: str) -> Source:
  """Finds and hashes the files of `name`, without reading them as text yet.

  Raises UsageError where the kind or the bundled name is unknown, DataError where files are missing, empty or
  changed.
  """
  kind, place = parted(name, KINDS)
  if kind == 'bundled':
    return _bundled(name, place)
  if kind == 'jsonl':
    return _json_lines(name, place)
  files = _text_files(name, existing(name, place))
  hashes = [hash_file(name, file) for file in files]
  lines = ''.join(f'{digest}  {file.name}\n' for digest, file in zip(hashes, files, strict=True))
  single = len(files) == 1 and Path(place).expanduser().is_file()
  digest = hashes[0] if single else hashlib.sha256(lines.encode('utf-8')).hexdigest()

  def pieces():
    for file in files:
      yield from _text_pieces(file)

  return Source(name, files, digest, 'text', pieces)


def parted(name: str, kinds: Mapping[str, str]) -> tuple[str, str]:
  """(kind, place) of 'kind:place'. UsageError that lists `kinds` ({kind: how it is written}) for any other."""
  kind, colon, place = name.partition(':')
  if kind not in kinds or not colon or not place:
    known = ', '.join(kinds.values())
    raise UsageError(f'data.source {name!r} is not of the form kind:place; the kinds are {known}')
  return kind, place


def read_bundled(file_name: str, sha256: str) -> bytes:
  """The unpacked content of a bundled .gz file. DataError where its hash is not `sha256`."""
  return gzip.decompress(checked_bundled(file_name, sha256).read_bytes())


def checked_bundled(file_name: str, sha256: str) -> Path:
  """Where a bundled file lies. DataError where its hash is not `sha256`."""
  path = BUNDLED_FOLDER / file_name
  found = hash_file(str(path), path)
  if found != sha256:
    raise DataError(f'{path}: sha256 is {found[:12]}..., not {sha256[:12]}...; install the package again')
  return path


def find_bundled(name: str, place: str, table: Mapping[str, tuple[str, str]]) -> tuple[Path, str]:
  """(path, sha256) of a bundled file, by {place: (file name, sha256)}. UsageError where it is not there."""
  if place not in table:
    raise UsageError(
      f'data.source {name!r}: {place!r} is not bundled; {nearest(place, table)}there are {listed(table)}'
    )
  file_name, sha256 = table[place]
  return checked_bundled(file_name, sha256), sha256


def _bundled(name, place):
  path, sha256 = find_bundled(name, place, BUNDLED)
  if path.name.endswith('.txt.gz'):
    return Source(name, (path,), sha256, 'text', lambda: _text_pieces(path))
  return Source(name, (path,), sha256, 'poem', lambda: _record_pieces(path, _poem))


def _json_lines(name, place):
  path, field = place, 'text'
  if '#' in place and not Path(place).expanduser().exists():
    path, _, field = place.rpartition('#')
  path = existing(name, path)
  if path.is_dir():
    raise DataError(f'{name}: {path} is a folder; jsonl takes one file with a JSON object on each line')
  digest = hash_file(name, path)
  read = lambda record, where: _text_field(record, field, where)
  return Source(name, (path,), digest, f'jsonl#{field}', lambda: _record_pieces(path, read))


def existing(name: str, place: str) -> Path:
  """The file or folder `place`. DataError that names the nearest one where there is none."""
  path = Path(place).expanduser()
  try:
    if path.is_file() or path.is_dir():
      return path
    if path.exists():
      raise DataError(f'{name}: {path} is neither a file nor a folder')
  except (OSError, ValueError) as error:  # a name too long, a zero byte, a folder that may not be entered
    raise DataError(f'{name}: cannot be opened: {getattr(error, "strerror", None) or error}') from None
  parent = path
  while not parent.is_dir():  # the deepest part of the path that exists: the next part is the mistyped one
    parent, missing = parent.parent, parent.name
  try:
    siblings = [entry.name for entry in parent.iterdir()]
  except OSError:
    siblings = []
  hint = f'{name}: there is no {missing!r} in the folder {parent.resolve()}; {nearest(missing, siblings)}'
  raise DataError(hint.rstrip('; '))


def _text_files(name, path):
  if path.is_file():
    return (path,)
  try:
    files = sorted(file for file in path.iterdir() if file.name.endswith(('.txt', '.txt.gz')))
  except OSError as error:
    raise DataError(f'{name}: the folder {path} cannot be read: {error.strerror}') from None
  if not files:
    raise DataError(f'{name}: the folder {path} holds no *.txt file')
  return tuple(files)


def hash_file(name: str, path: Path) -> str:
  """The sha256 of a file of the source `name`. DataError where it is empty or cannot be read."""
  try:
    with open(path, 'rb') as stream:
      digest = hashlib.file_digest(stream, 'sha256').hexdigest()
      if not stream.tell():
        raise DataError(f'{name}: {path} is empty')
    return digest
  except OSError as error:
    raise DataError(f'{name}: {path} cannot be read: {error.strerror}') from None


def open_file(path: Path):
  """The file's bytes as a stream, unpacked where the name ends in .gz."""
  return gzip.open(path, 'rb') if path.suffix == '.gz' else open(path, 'rb')


def reading(path: Path, items: Iterable) -> Iterator:
  """`items`, an iterator that reads `path`, with errors of the file turned into one line."""
  try:
    yield from items
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise DataError(f'{path}: not a whole gzip file: {error}') from None
  except OSError as error:
    raise DataError(f'{path}: cannot be read: {error.strerror}') from None


def not_utf8(path: Path, offset: int, error: UnicodeDecodeError, base: int = 0, where: str = '') -> DataError:
  """The one line for bytes that are no UTF-8; `offset` is of byte `base` of what was decoded."""
  byte = error.object[error.start]
  unpacked = ' of the unpacked text' if path.suffix == '.gz' else ''
  return DataError(
    f'{where or path}: not UTF-8 at byte offset {offset + error.start - base:,}{unpacked} (byte 0x{byte:02x}); '
    'convert the file to UTF-8'
  )


def _decoded(path) -> Iterator[str]:
  """The text of a file, chunk by chunk."""
  decoder = codecs.getincrementaldecoder('utf-8')()
  offset = 0  # of the chunk in the file
  with open_file(path) as stream:
    while True:
      chunk = stream.read(READ_BYTES)
      pending = len(decoder.getstate()[0])  # bytes of a character that the chunk before left unfinished
      try:
        text = decoder.decode(chunk, final=not chunk)
      except UnicodeDecodeError as error:
        raise not_utf8(path, offset, error, base=pending) from None
      yield text.removeprefix('\ufeff') if offset == 0 else text
      if not chunk:
        return
      offset += len(chunk)


def _safe_cut(text):
  """The last place between a non-space and a space or line end (0: none).

  No word of GPT-2's pre-tokenizer reaches over such a place, so the two parts have the tokens of the whole.
  """
  end = len(text)
  while (end := max(text.rfind(' ', 0, end), text.rfind('\n', 0, end))) > 0:
    if not text[end - 1].isspace():
      return end
  return 0


def _text_pieces(path) -> Iterator[Piece]:
  held, count = '', 0
  for text in reading(path, _decoded(path)):
    held += text
    while len(held) > PIECE_CHARACTERS:
      cut = _safe_cut(held[:PIECE_CHARACTERS]) or _safe_cut(held)
      if not cut:
        break
      yield Piece(held[:cut], False)
      held, count = held[cut:], count + cut
  if not count and not held:
    raise DataError(f'{path}: is empty')
  yield Piece(held, True)


def _record_pieces(path, read) -> Iterator[Piece]:
  """One document for each line of a JSON-lines file; records whose text is empty are left out."""
  for text in reading(path, _record_texts(path, read)):
    if text:
      yield Piece(text, True)


def _record_texts(path, read):
  for record, where in json_records(path):
    yield whole_characters(read(record, where))


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
  """(line with its end, '{path}, line {number}') of a UTF-8 file. DataError names the line that is none."""
  offset = 0
  with open_file(path) as stream:
    for number, line in enumerate(stream, 1):
      where = f'{path}, line {number:,}'
      try:
        text = line.decode('utf-8').removeprefix('\ufeff' if number == 1 else '')
      except UnicodeDecodeError as error:
        raise not_utf8(path, offset, error, where=where) from None
      yield text, where
      offset += len(line)


def json_records(path: Path) -> Iterator[tuple[dict, str]]:
  """(JSON object, '{path}, line {number}') of each line that is not blank. DataError where a line is none."""
  for text, where in lines_of(path):
    if not text.strip():
      continue
    try:
      record = json.loads(text)
    except json.JSONDecodeError as error:
      raise DataError(f'{where}: not JSON: {error.msg} at column {error.colno}') from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
      raise DataError(f'{where}: not JSON that can be read: {error}') from None
    if not isinstance(record, dict):
      raise DataError(f'{where}: {kind_of(record)}, not a JSON object')
    yield record, where


def whole_characters(text: str) -> str:
  """Joins pairs of surrogates (from JSON or a terminal); halves are no characters and become U+FFFD."""
  try:
    text.encode('utf-8')
    return text
  except UnicodeEncodeError:
    return text.encode('utf-16-le', 'surrogatepass').decode('utf-16-le', 'replace')


def kind_of(value) -> str:
  """What a value from JSON is, for people."""
  if value is None:
    return 'null'
  return {bool: 'a boolean', str: 'a string', list: 'a list', dict: 'an object'}.get(type(value), 'a number')


def _text_field(record, field, where):
  if field not in record:
    present = ', '.join(list(record)[:8]) or 'none'
    raise DataError(f'{where}: no field {field!r}; its fields are {present}; choose by jsonl:PATH#FIELD')
  if not isinstance(record[field], str):
    raise DataError(f'{where}: field {field!r} holds {kind_of(record[field])}, not a string')
  return record[field]


def _poem(record, where):
  """Title and author on the first line, then the poem's lines as they are sung."""
  del where
  return '\n'.join([f'{record["title"]} · {record["author"]}', *record['lines']])
