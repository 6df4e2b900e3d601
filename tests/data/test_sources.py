import gzip
import json
import re
import subprocess
import sys

import pytest

from aigc_jax.data import sources, tokenizers
from aigc_jax.data.sources import Piece, open_source
from aigc_jax.errors import DataError, UsageError


def documents(name):
  texts, held = [], ''
  for text, ends in open_source(name).pieces():
    held += text
    if ends:
      texts.append(held)
      held = ''
  assert not held
  return texts


def message_of(name, error=DataError):
  with pytest.raises(error) as caught:
    documents(name)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_bundled_texts():
  (moby,) = documents('bundled:moby_dick')
  assert len(moby) == 1_190_317
  assert len(set(moby)) == 83
  poems = documents('bundled:song_ci')
  assert len(poems) == 6000
  assert poems[0].startswith('导引 · 和岘\n气和玉烛，睿化著鸿明。\n缇管一阳生。\n')


def test_hashes_are_those_of_the_table():
  table = (sources.BUNDLED_FOLDER / 'SOURCES.md').read_text(encoding='utf-8')
  for file_name, sha256 in sources.BUNDLED.values():
    assert re.search(rf'`{re.escape(file_name)}`.*`{sha256}`', table)
  assert len(sources.read_bundled(*tokenizers.GPT2_MERGES)) > 400_000


def test_a_changed_bundled_file_is_refused(monkeypatch):
  monkeypatch.setitem(sources.BUNDLED, 'moby_dick', ('moby_dick.txt.gz', '0' * 64))
  assert 'sha256 is 19029ef240ba' in message_of('bundled:moby_dick')


def test_a_file_is_one_document_and_keeps_its_line_ends(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes('\ufeffone\r\ntwo\n\n中文 \n'.encode())
  assert documents(f'text:{path}') == ['one\r\ntwo\n\n中文 \n']


def test_gzip_and_folder(tmp_path):
  (tmp_path / 'b.txt').write_text('second', encoding='utf-8')
  (tmp_path / 'a.txt.gz').write_bytes(gzip.compress('first 诗'.encode()))
  (tmp_path / 'notes.md').write_text('no', encoding='utf-8')
  assert documents(f'text:{tmp_path}') == ['first 诗', 'second']
  assert documents(f'text:{tmp_path}/a.txt.gz') == ['first 诗']


def test_the_hash_tells_content_and_names_apart(tmp_path):
  (tmp_path / 'a.txt').write_text('one', encoding='utf-8')
  first = open_source(f'text:{tmp_path}').sha256
  (tmp_path / 'b.txt').write_text('two', encoding='utf-8')
  assert open_source(f'text:{tmp_path}').sha256 != first
  assert open_source(f'text:{tmp_path}/a.txt').sha256 != first


@pytest.mark.parametrize(
  'text', ['word ' * 300 + '  \n\n   ' * 40 + 'x' * 500 + '\u3000\u3000 诗。\n' * 60, '诗' * 3000]
)
def test_pieces_join_to_the_text_and_cut_no_token(text, tmp_path, monkeypatch):
  monkeypatch.setattr(sources, 'READ_BYTES', 257)  # cuts within characters
  monkeypatch.setattr(sources, 'PIECE_CHARACTERS', 100)
  path = tmp_path / 'a.txt'
  path.write_text(text, encoding='utf-8')
  pieces = list(open_source(f'text:{path}').pieces())
  assert ''.join(piece.text for piece in pieces) == text
  assert [piece.ends for piece in pieces] == [False] * (len(pieces) - 1) + [True]
  assert (len(pieces) > 10) == (' ' in text)  # a text without spaces has no safe cut
  gpt2 = tokenizers.gpt2()
  parts = [token for piece in pieces for token in gpt2.encode(piece.text).tolist()]
  assert parts == gpt2.encode(text).tolist()


def test_json_lines(tmp_path):
  path = tmp_path / 'a.jsonl'
  rows = [{'text': 'one', 'poem': 'x'}, {'text': '', 'poem': 'y'}, {'text': 'th\nree', 'poem': 'z'}]
  path.write_text('\ufeff' + '\n\n'.join(json.dumps(row) for row in rows), encoding='utf-8')
  assert documents(f'jsonl:{path}') == ['one', 'th\nree']
  assert documents(f'jsonl:{path}#poem') == ['x', 'y', 'z']
  assert open_source(f'jsonl:{path}').reading != open_source(f'jsonl:{path}#poem').reading
  path.write_bytes(rb'{"text": "\ud83d\ude00 \ud800"}')
  assert list(open_source(f'jsonl:{path}').pieces()) == [Piece('😀 \ufffd', True)]


@pytest.mark.parametrize('name', ['moby_dick', 'texts:a', 'bundled:', '', 'text', 'tfds:lm1b'])
def test_unknown_kinds(name):
  assert 'bundled:moby_dick, text:PATH, jsonl:PATH[#FIELD]' in message_of(name, UsageError)


def test_unknown_bundled_name():
  assert "did you mean 'moby_dick'?" in message_of('bundled:mobydick', UsageError)
  assert 'there are moby_dick, song_ci' in message_of('bundled:zzz', UsageError)


def test_missing_files_and_their_nearest_name(tmp_path):
  (tmp_path / 'poems').mkdir()
  (tmp_path / 'poems' / 'tang.txt').write_text('x', encoding='utf-8')
  mistyped = message_of(f'text:{tmp_path}/poems/tag.txt')
  assert mistyped.endswith(f"no 'tag.txt' in the folder {tmp_path}/poems; did you mean 'tang.txt'?")
  mistyped = message_of(f'jsonl:{tmp_path}/poem/tang.jsonl#text')
  assert mistyped.endswith(f"no 'poem' in the folder {tmp_path}; did you mean 'poems'?")
  assert message_of(f'text:{tmp_path}/zzz').endswith(f"no 'zzz' in the folder {tmp_path}")
  assert "no 'there-is-no-such-file'" in message_of('text:there-is-no-such-file')
  assert 'cannot be opened' in message_of(f'text:{"x" * 5000}')
  assert "no 'tang.txt'" in message_of(f'text:{tmp_path}/poems/tang.txt/tang.txt')


def test_empty_files(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_bytes(b'')
  assert message_of(f'text:{path}').endswith(f'{path} is empty')
  assert message_of(f'jsonl:{path}').endswith(f'{path} is empty')
  assert message_of(f'text:{tmp_path}').endswith(f'{path} is empty')
  path.write_bytes('\ufeff'.encode())
  assert message_of(f'text:{path}').endswith('is empty')
  packed = tmp_path / 'a.txt.gz'
  packed.write_bytes(gzip.compress(b''))
  assert message_of(f'text:{packed}').endswith('is empty')
  (tmp_path / 'folder').mkdir()
  assert 'holds no *.txt file' in message_of(f'text:{tmp_path}/folder')
  assert 'is a folder' in message_of(f'jsonl:{tmp_path}/folder')
  assert 'neither a file nor a folder' in message_of('text:/dev/null')


@pytest.mark.parametrize('place', [0, 1, 255, 256, 257, 258, 1000])
def test_not_utf8_names_the_byte_offset(place, tmp_path, monkeypatch):
  monkeypatch.setattr(sources, 'READ_BYTES', 257)
  path = tmp_path / 'a.txt'
  good = ('é' * 1000).encode()
  path.write_bytes(good[: place - place % 2] + b'\xff' + good)
  assert f'{path}: not UTF-8 at byte offset {place - place % 2:,} (byte 0xff)' in message_of(f'text:{path}')
  path.write_bytes(b'x' * place + 'é'.encode()[:1])  # cut within a character
  assert f'not UTF-8 at byte offset {place:,} (byte 0xc3)' in message_of(f'text:{path}')
  packed = tmp_path / 'a.txt.gz'
  packed.write_bytes(gzip.compress(b'x' * place + b'\xe9t\xe9'))
  assert f'byte offset {place:,} of the unpacked text (byte 0xe9)' in message_of(f'text:{packed}')


def test_bad_json_lines(tmp_path):
  path = tmp_path / 'a.jsonl'
  first = b'{"text": "one"}\n'

  def message(line):
    path.write_bytes(first + line + b'\n' + first)
    return message_of(f'jsonl:{path}')

  assert f"{path}, line 2: not JSON: Expecting ',' delimiter at column 13" in message(b'{"text": 12 "x"}')
  assert 'line 2: a list, not a JSON object' in message(b'[1]')
  assert "line 2: no field 'text'; its fields are title, body; choose by jsonl:" in message(
    b'{"title": 1, "body": 2}'
  )
  assert 'its fields are none' in message(b'{}')
  assert "field 'text' holds a number, not a string" in message(b'{"text": 1.5}')
  assert "field 'text' holds null, not a string" in message(b'{"text": null}')
  assert 'byte offset 26 (byte 0xff)' in message(b'{"text": "\xff"}')
  assert 'line 2: not JSON' in message(b'{"text": ' + b'[' * 100_000)
  assert 'line 2: not JSON' in message(b'{"text": ' + b'1' * 10_000 + b'}')


def test_broken_gzip(tmp_path):
  path = tmp_path / 'a.txt.gz'
  path.write_bytes(b'plain text')
  assert f'{path}: not a whole gzip file' in message_of(f'text:{path}')
  path.write_bytes(gzip.compress(bytes(range(65, 91)) * 100)[:-12])
  assert 'not a whole gzip file' in message_of(f'text:{path}')


def test_neither_jax_nor_tokenizers_is_imported():
  code = 'import sys, aigc_jax.data; assert not {"jax", "tokenizers"} & set(sys.modules)'
  subprocess.run([sys.executable, '-c', code], check=True)
