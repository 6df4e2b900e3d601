import json
import random
import subprocess
import sys

import numpy as np
import pytest
import tiktoken
import transformers

from aigc_jax.data import pretrained_tokenizers, sources, tokenizers
from aigc_jax.errors import StorageError, UsageError

HARD = [
  '',
  ' ',
  'Call me Ishmael.',
  "I've they're we'll he'd it's 'S 'LL ''ve",
  '👩‍👩‍👧‍👦🏳️‍🌈🇯🇵 e\u0301 \u200d\ufe0f 🤷🏽‍♀️',
  '明月几时有？把酒问青天。\u3000不知天上宫阙',
  '\x00\x01\x1b[31m\x7f\x80\x85\x9f\xa0\xad\u2028\u2029\ufeff',
  'a' + ' ' * 300 + 'b' + '\t' * 40 + ' \n  \n\n   c   ',
  'one\r\ntwo\rthree\n\n\r\n\nfour\x0b\x0c\x1c\x1d',
  'text<|endoftext|>more <|endoftext|><|endoftext|> <|endoftext|',
  'def f(x):\n    return x  # 12345 ½ ² ٣ Ⅷ ①\n',
  'ſ K Å İ ı ẞ ŉ ǆ ﬃ',
  '\U0001f9ff\U000e0001\U0010ffff\ue000\ufffe\uffff',
]


@pytest.fixture(scope='module')
def gpt2():
  return tokenizers.gpt2()


@pytest.fixture(scope='module')
def merges():
  return sources.read_bundled(*tokenizers.GPT2_MERGES).decode('utf-8').splitlines()[1:]


@pytest.fixture(scope='module')
def oracle(merges):
  """tiktoken's gpt2 encoding, made here from the merges: ids 0..255 are bytes, then one token a merge."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  order = printable + [byte for byte in range(256) if byte not in printable]
  symbols = {chr(byte) if byte in printable else chr(256 + order.index(byte) - 188): byte for byte in order}
  as_bytes = lambda token: bytes(symbols[symbol] for symbol in token)
  ranks = {bytes([byte]): i for i, byte in enumerate(order)}
  for merge in merges:
    ranks[b''.join(as_bytes(part) for part in merge.split(' '))] = len(ranks)
  pattern = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
  special = {'<|endoftext|>': 50256}
  return tiktoken.Encoding('gpt2', pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)


def random_texts(count, seed):
  """Texts mixed of scripts, spaces and any assigned or unassigned code point but surrogates."""
  rng = random.Random(seed)
  points = [(0, 0x7F), (0x80, 0x24F), (0x400, 0x4FF), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF), (0, 0xD7FF)]
  points += [(0xE000, 0x10FFFF), (0x2000, 0x206F)]
  words = [' ', '  ', '\n', "'s", "'ll", '\r\n', 'the', ' whale', '<|endoftext|>', '\t', '   \n', '1', ' 23']
  for _ in range(count):
    yield ''.join(
      rng.choice(words) if rng.random() < 0.4 else chr(rng.randint(*rng.choice(points)))
      for _ in range(rng.randint(1, 40))
    )


def test_gpt2_equals_tiktoken(gpt2, oracle):
  assert gpt2.vocabulary_size == oracle.n_vocab == 50257
  for text in [*HARD, *random_texts(2000, 0)]:
    ids = gpt2.encode(text)
    assert ids.dtype == np.int32
    assert ids.tolist() == oracle.encode(text, allowed_special='all'), ascii(text)
    assert gpt2.decode(ids) == text
    assert gpt2.decode_bytes(ids) == oracle.decode_bytes(ids.tolist())


def test_gpt2_equals_transformers(gpt2, merges, oracle):
  byte_symbols = list(pretrained_tokenizers.byte_symbols().values())
  names = [*byte_symbols, *(merge.replace(' ', '') for merge in merges), '<|endoftext|>']
  peer = transformers.GPT2Tokenizer(
    vocab={name: i for i, name in enumerate(names)}, merges=[tuple(m.split(' ')) for m in merges]
  )
  for text in [*HARD, *random_texts(300, 1)]:
    assert gpt2.encode(text).tolist() == peer.encode(text), ascii(text)


@pytest.mark.parametrize('separated', [False, True])
@pytest.mark.parametrize('specification', ['characters', 'bytes', 'bpe:400', 'gpt2'])
def test_round_trip_and_saved_file(specification, separated, tmp_path):
  corpus = ''.join(HARD) + ' the whale and the sea' * 50
  tokenizer = tokenizers.build(specification, corpus, lambda: [corpus], separated)
  assert (tokenizer.end_of_text is None) == (specification in ('characters', 'bytes') and not separated)
  tokenizer.save(tmp_path / 'tokenizer.json')
  loaded = tokenizers.load(tmp_path / 'tokenizer.json')
  assert loaded.name == tokenizer.name == specification
  assert list(loaded.pieces) == list(tokenizer.pieces)
  assert (loaded.separator, loaded.end_of_text) == (tokenizer.separator, tokenizer.end_of_text)
  assert loaded.sha256 == tokenizer.sha256
  for text in HARD:
    ids = tokenizer.encode(text)
    np.testing.assert_array_equal(loaded.encode(text), ids)
    assert tokenizer.decode(ids) == text
    assert b''.join(tokenizer.decode_bytes([i]) for i in ids) == text.encode('utf-8')  # as streaming does
    assert ids.size == 0 or 0 <= ids.min() <= ids.max() < tokenizer.vocabulary_size


@pytest.mark.parametrize('specification', ['characters', 'bytes', 'bpe:300', 'gpt2'])
def test_character_counts_add_up(specification):
  text = ''.join(HARD).replace('<|endoftext|>', '')
  tokenizer = tokenizers.build(specification, text, lambda: [text])
  assert tokenizer.character_counts.shape == (tokenizer.vocabulary_size,)
  assert tokenizer.character_counts.dtype == np.float32
  assert tokenizer.character_counts[tokenizer.encode(text)].sum() == len(text)


def test_end_of_text_counts_no_characters(gpt2):
  assert gpt2.end_of_text == 50256
  assert gpt2.character_counts[50256] == 0


def test_surrogates_do_not_crash(gpt2, oracle):
  text = 'a\ud83d\ude00b\udc80c\ud800'
  assert gpt2.encode(text).tolist() == oracle.encode(text)
  assert tokenizers.byte_values().decode(tokenizers.byte_values().encode(text)) == 'a😀b\ufffdc\ufffd'
  with pytest.raises(UsageError, match=r"'\\udc80' \(first at character 4 "):
    tokenizers.characters('ab😀').encode('a😀b\udc80')


def test_characters_outside_the_vocabulary_are_named():
  tokenizer = tokenizers.characters('abc')
  with pytest.raises(
    UsageError, match=r"^'é', '\\t', '中' \(first at character 2 .* vocabulary of 4 characters$"
  ):
    tokenizer.encode('aéb\t中é')


def test_character_ids_follow_code_points_as_in_nanogpt():
  tokenizer = tokenizers.characters('hello\nworld')
  assert [piece.decode() for piece in tokenizer.pieces] == sorted(set('hello\nworld'))


def test_bpe_is_trained_alike_in_another_process():
  text = ''.join(piece.text for piece in sources.open_source('bundled:moby_dick').pieces())[:100_000]
  code = (
    'import sys; from aigc_jax.data import tokenizers; '
    'print(tokenizers.trained_bpe(600, [sys.stdin.buffer.read().decode("utf-8")]).sha256)'
  )
  there = subprocess.run(
    [sys.executable, '-c', code], input=text.encode('utf-8'), capture_output=True, check=True
  )
  assert there.stdout.decode().strip() == tokenizers.trained_bpe(600, [text]).sha256


def test_bpe_of_a_small_text_is_smaller_than_asked():
  tokenizer = tokenizers.trained_bpe(5000, ['aaaa bbbb'])
  assert 257 <= tokenizer.vocabulary_size < 300
  assert tokenizer.decode(tokenizer.encode('中文 aaaa')) == '中文 aaaa'


@pytest.mark.parametrize(
  ('specification', 'message'),
  [
    ('charcters', "did you mean 'characters'"),
    ('wordpiece', 'there are characters, bytes, bpe:SIZE, gpt2'),
    ('bpe', 'write bpe:SIZE'),
    ('bpe:', 'write bpe:SIZE'),
    ('bpe:big', 'write bpe:SIZE'),
    ('bpe:256', 'SIZE from 257 up'),
    ('gpt2:3', 'unknown'),
  ],
)
def test_unknown_tokenizers(specification, message):
  with pytest.raises(UsageError, match=message) as error:
    tokenizers.check(specification)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'content',
  [
    '',
    '{',
    '[]',
    '{}',
    '{"format": 9, "name": "bytes"}',
    '{"format": 1, "name": "x"}',
    '{"format": 1, "name": "bpe:300", "bpe": {}}',
    '{"format": 1, "name": "characters", "characters": 3}',
    '\udcff',
  ],
)
def test_broken_tokenizer_files(content, tmp_path):
  path = tmp_path / 'tokenizer.json'
  path.write_bytes(content.encode('utf-8', 'surrogateescape'))
  with pytest.raises(StorageError, match=r'tokenizer\.json: ') as error:
    tokenizers.load(path)
  assert '\n' not in str(error.value)


def test_missing_tokenizer_file(tmp_path):
  with pytest.raises(StorageError, match='no such'):
    tokenizers.load(tmp_path / 'none.json')
  with pytest.raises(StorageError, match='cannot be written'):
    tokenizers.byte_values().save(tmp_path / 'none' / 'tokenizer.json')


def test_saved_file_is_plain_json(tmp_path):
  tokenizers.characters('诗abc').save(tmp_path / 'tokenizer.json')
  saved = json.loads((tmp_path / 'tokenizer.json').read_text(encoding='utf-8'))
  assert saved == {'format': 1, 'name': 'characters', 'characters': '\nabc诗'}
  assert [path.name for path in tmp_path.iterdir()] == ['tokenizer.json']


@pytest.mark.parametrize('specification', ['characters', 'bytes', 'bpe:300', 'gpt2'])
def test_a_mask_is_the_last_token_and_comes_from_no_ordinary_text(specification, tmp_path):
  text = ''.join(HARD) + 'deep [MASK]ing'
  plain = tokenizers.build(specification, text, lambda: [text], True)
  masked = tokenizers.with_mask(plain)
  assert masked.mask_token == plain.vocabulary_size == masked.vocabulary_size - 1
  assert masked.end_of_text == plain.end_of_text
  assert masked.sha256 != plain.sha256
  assert tokenizers.with_mask(masked) is masked
  assert tokenizers.without_mask(masked).sha256 == plain.sha256
  np.testing.assert_array_equal(masked.encode(text), plain.encode(text))
  assert masked.decode([masked.mask_token]) == '[MASK]'
  assert masked.character_counts[masked.mask_token] == 0
  masked.save(tmp_path / 'masked.json')
  plain.save(tmp_path / 'plain.json')
  loaded = tokenizers.load(tmp_path / 'masked.json')
  assert (loaded.mask_token, loaded.sha256) == (masked.mask_token, masked.sha256)
  assert list(loaded.pieces) == list(masked.pieces)
  assert tokenizers.load(tmp_path / 'plain.json').mask_token is None, 'as in files of older versions'
  ids = loaded.encode_masked('[MASK]deep [MASK]ing[MASK]')
  space = [] if specification in ('bpe:300', 'gpt2') else plain.encode(' ').tolist()
  mask = [masked.mask_token]
  assert (
    ids.tolist() == mask + plain.encode('deep').tolist() + space + mask + plain.encode('ing').tolist() + mask
  )
  np.testing.assert_array_equal(loaded.encode_masked('deep'), plain.encode('deep'))
