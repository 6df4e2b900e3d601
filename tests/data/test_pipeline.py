import hashlib
import itertools
import json
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest

from aigc_jax import data
from aigc_jax.data import corpus, tokenizers
from aigc_jax.data.pipeline import best_fit
from aigc_jax.errors import DataError, StorageError, UsageError


def config(source, **changes):
  return {'source': source, 'tokenizer': 'bytes', 'sequence_length': 16, 'batch_size': 4, 'seed': 3} | changes


@pytest.fixture
def text_file(tmp_path):
  """A text in which each four letters are found once, so that a window tells where it is from."""
  path = tmp_path / 'text.txt'
  path.write_text(''.join(f'{i:04x}' for i in range(1000)), encoding='utf-8')
  return f'text:{path}'


@pytest.fixture
def documents_file(tmp_path):
  rng = np.random.default_rng(0)
  path = tmp_path / 'documents.jsonl'
  texts = [f'<{i}|' + 'x' * int(rng.integers(0, 60)) + '>' for i in range(120)]
  path.write_text('\n'.join(json.dumps({'text': text}) for text in texts), encoding='utf-8')
  return f'jsonl:{path}', texts


def assert_equal(first, second):
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_array_equal(first[name], second[name])
    assert first[name].dtype == second[name].dtype


def masked_targets(batches):
  """The pairs (input, target) that count, as a multiset."""
  pairs = Counter()
  for batch in batches:
    inside = batch['mask'] > 0
    pairs.update(zip(batch['inputs'][inside].tolist(), batch['targets'][inside].tolist(), strict=True))
  return pairs


@pytest.mark.parametrize('packing', ['stream', 'documents'])
def test_a_batch_is_a_function_of_seed_and_step(packing, documents_file):
  source = documents_file[0]
  first, second = (data.load(config(source, packing=packing)) for _ in range(2))
  forward = [first.train_batch(step) for step in range(60)]
  for step in [59, 0, 30, 7]:
    assert_equal(second.train_batch(step), forward[step])
    assert_equal(second.train_batch(np.int32(step)), forward[step])
  other = data.load(config(source, packing=packing, seed=4))
  assert any((other.train_batch(i)['inputs'] != forward[i]['inputs']).any() for i in range(3))
  data.load(config(source, packing=packing, seed=-1)).train_batch(0)
  start = time.perf_counter()
  first.train_batch(10**6)
  assert time.perf_counter() - start < 1  # random access, not a walk


def test_batches_are_the_same_in_another_process(text_file):
  code = (
    'import sys, json, hashlib; from aigc_jax import data; d = data.load(json.loads(sys.argv[1])); '
    'print(hashlib.sha256(b"".join(d.train_batch(s)["inputs"].tobytes() for s in (12345, 0, 7))).hexdigest())'
  )
  argument = json.dumps(config(text_file))
  there = subprocess.run([sys.executable, '-c', code, argument], capture_output=True, check=True, text=True)
  dataset = data.load(config(text_file))
  here = hashlib.sha256(
    b''.join(dataset.train_batch(s)['inputs'].tobytes() for s in (12345, 0, 7))
  ).hexdigest()
  assert there.stdout.strip() == here


def test_stream_epochs_cover_the_split_once_with_another_offset(text_file):
  dataset = data.load(config(text_file, batch_size=1))
  text = ''.join(f'{i:04x}' for i in range(1000))[:3600]
  windows = dataset.facts['steps_per_epoch']
  assert windows == 3600 // 16 - 1
  offsets, orders = set(), set()
  for epoch in range(4):
    starts = []
    for step in range(int(windows)):
      batch = dataset.train_batch(int(epoch * windows + step))
      row = bytes(batch['inputs'][0].tolist()).decode()
      np.testing.assert_array_equal(batch['inputs'][:, 1:], batch['targets'][:, :-1])
      assert batch['mask'].all()
      (start,) = [i for i in range(len(text)) if text.startswith(row, i)]
      assert ord(text[start + 16]) == batch['targets'][0, -1]  # within the training part
      starts.append(start)
    assert sorted(starts) == list(
      range(min(starts), min(starts) + 16 * int(windows), 16)
    )  # once each, none twice
    assert min(starts) < 16
    offsets.add(min(starts))
    orders.add(tuple(start - min(starts) for start in starts))
  assert len(offsets) > 1
  assert len(orders) == 4


@pytest.mark.parametrize('size', [17, 18, 31, 32, 33, 47, 48, 49, 64, 65])
def test_short_texts_stay_within_their_split(size, tmp_path):
  (tmp_path / 'a.txt').write_text('x' * size, encoding='utf-8')
  (tmp_path / 'b.txt').write_text('y' * 40, encoding='utf-8')
  changes = {'validation_source': f'text:{tmp_path}/b.txt', 'tokenizer': 'characters', 'batch_size': 3}
  dataset = data.load(config(f'text:{tmp_path}/a.txt', **changes))
  for step in range(40):
    batch = dataset.train_batch(step)
    assert batch['inputs'].shape == (3, 16)
    assert (batch['targets'] == dataset.tokenizer.encode('x')).all()


def test_types_and_shapes(documents_file):
  for packing in ('stream', 'documents'):
    dataset = data.load(config(documents_file[0], packing=packing))
    train, validation = dataset.train_batch(0), next(dataset.validation_batches())
    names = {'inputs', 'targets', 'mask'} | ({'segments'} if packing == 'documents' else set())
    assert set(train) == names
    assert set(validation) == names | {'characters'}
    for name, array in validation.items():
      assert array.shape == (4, 16)
      assert array.dtype == (np.float32 if name in ('mask', 'characters') else np.int32)
      assert array.flags.c_contiguous


def test_split_of_one_text_is_nanogpts(text_file):
  dataset = data.load(config('bundled:moby_dick', tokenizer='characters', sequence_length=64))
  assert dataset.facts['train_tokens'] == int(1_190_317 * 0.9)
  assert dataset.facts['validation_tokens'] == 1_190_317 - int(1_190_317 * 0.9)
  assert dataset.facts['characters'] == 1_190_317
  assert dataset.facts['documents'] == 1
  assert dataset.tokenizer.vocabulary_size == dataset.facts['vocabulary_size'] == 83
  assert dataset.facts['split'] == 'the first 1,071,285 of 1,190,317 characters train, the rest validates'
  first = next(dataset.validation_batches())
  moby = ''.join(piece.text for piece in corpus.open_source('bundled:moby_dick').pieces())
  assert dataset.tokenizer.decode(first['inputs'].reshape(-1)) == moby[1_071_285:][: 4 * 64]


def test_split_of_documents_is_at_the_nearest_boundary(tmp_path):
  path = tmp_path / 'a.jsonl'
  sizes = [50, 20, 15, 10, 5]
  path.write_text(
    '\n'.join(json.dumps({'text': 'abcde'[i] * n}) for i, n in enumerate(sizes)), encoding='utf-8'
  )
  tokens = lambda fraction: data.load(config(f'jsonl:{path}', validation_fraction=fraction)).facts[
    'train_tokens'
  ]
  assert tokens(0.1) == 1 + 85 + 3  # 85 or 95 for 90: the first of the two nearest
  assert tokens(0.06) == 1 + 95 + 4
  assert tokens(0.001) == 1 + 95 + 4  # at least one document validates
  assert tokens(0.99) == 1 + 50 + 1


def test_validation_covers_every_target_once_in_order(text_file):
  dataset = data.load(config(text_file, sequence_length=24))
  batches = list(dataset.validation_batches())
  assert len(batches) == dataset.validation_size
  assert all(batch['inputs'].shape == (4, 24) for batch in batches)
  targets = np.concatenate([batch['targets'][batch['mask'] > 0] for batch in batches])
  text = ''.join(f'{i:04x}' for i in range(1000))[3600:]
  assert bytes(targets.tolist()).decode() == text[1:]
  assert sum(batch['characters'].sum() for batch in batches) == len(text) - 1
  assert batches[-1]['mask'].sum() < 4 * 24  # there is padding, and it is masked
  again = list(dataset.validation_batches())
  for first, second in zip(batches, again, strict=True):
    assert_equal(first, second)


@pytest.mark.parametrize('tokenizer', ['bytes', 'characters', 'bpe:300', 'gpt2'])
def test_packed_documents_lose_and_repeat_nothing(tokenizer, documents_file):
  source, texts = documents_file
  dataset = data.load(config(source, packing='documents', tokenizer=tokenizer, batch_size=1))
  known = dataset.tokenizer
  steps = int(dataset.facts['steps_per_epoch'])
  batches = [dataset.train_batch(step) for step in range(steps)]
  validation = list(dataset.validation_batches())
  expected = []
  for text in texts:  # a document follows the end of a separator and is followed by one
    ids = [known.separator[-1], *known.encode(text).tolist(), *known.separator]
    expected += itertools.pairwise(ids)
  counted = masked_targets(batches)
  assert counted + masked_targets(validation) == Counter(expected)
  assert (
    masked_targets(dataset.train_batch(steps + step) for step in range(steps)) == counted
  )  # the next epoch too
  stream = data.load(config(source, tokenizer=tokenizer))
  assert masked_targets(stream.validation_batches()) == masked_targets(validation)
  assert known.separator == (known.end_of_text,)  # whatever the tokenizer: the end of a document is a token
  characters = sum(batch['characters'].sum() for batch in validation)
  count = int(dataset.facts['split'].split()[2])
  assert characters == sum(map(len, texts[count:]))


def test_packed_rows_keep_documents_apart(documents_file):
  source, texts = documents_file
  dataset = data.load(config(source, packing='documents', sequence_length=40, batch_size=1))
  found = Counter()
  filled = 0
  for step in range(int(dataset.facts['steps_per_epoch'])):
    batch = dataset.train_batch(step)
    for inputs, targets, mask, segments in zip(
      *(batch[n] for n in ('inputs', 'targets', 'mask', 'segments')), strict=True
    ):
      np.testing.assert_array_equal(mask, segments > 0)
      assert (np.diff(segments[segments > 0]) >= 0).all()  # 1, 2, 3 ... then padding
      assert set(segments.tolist()) - {0} == set(range(1, segments.max() + 1))
      assert (inputs[segments == 0] == 0).all()
      for segment in range(1, segments.max() + 1):
        ids = [*inputs[segments == segment], targets[segments == segment][-1]]
        row = dataset.tokenizer.decode(ids).replace(tokenizers.END_OF_TEXT, '\n')
        np.testing.assert_array_equal(inputs[segments == segment][1:], targets[segments == segment][:-1])
        assert row.strip('\n').count('<') <= 1  # one document
        if row.startswith('\n<') and row.endswith('>\n'):
          found[row.strip('\n')] += 1
      filled += mask.mean()
  whole = [text for text in texts if len(text) + 2 <= 40]
  assert max(found.values()) == 1
  assert set(found) >= set(whole[: len(whole) // 2])  # short ones are never cut
  assert filled / int(dataset.facts['steps_per_epoch']) > 0.85


def test_a_long_document_is_cut_into_windows(text_file):
  dataset = data.load(config(text_file, packing='documents', sequence_length=64, batch_size=1))
  text = ''.join(f'{i:04x}' for i in range(1000))[:3600].encode()
  steps = int(dataset.facts['steps_per_epoch'])
  assert steps == -(-3599 // 64)
  assert masked_targets(dataset.train_batch(s) for s in range(steps)) == Counter(itertools.pairwise(text))


def test_best_fit():
  sizes = np.array([3, 7, 5, 10, 2, 1, 10, 2])
  rows = best_fit(sizes, 10)
  assert np.bincount(rows, sizes).tolist() == [10, 10, 10, 10]
  assert rows.tolist() == [0, 0, 1, 2, 1, 1, 3, 1]  # rows are numbered in the order of their first items


def test_given_tokenizer_is_used(text_file, tmp_path):
  trained = tokenizers.trained_bpe(300, ['abcdef0123456789' * 9])
  dataset = data.load(config(text_file), tokenizer=trained)
  assert dataset.tokenizer is trained
  (tmp_path / 'other.txt').write_text('short', encoding='utf-8')
  other = data.load_validation(config(f'text:{tmp_path}/other.txt', batch_size=2), trained)
  batches = list(other.validation_batches())
  assert sum(batch['mask'].sum() for batch in batches) == len(trained.encode('short')) - 1
  with pytest.raises(ValueError, match='validation alone'):
    other.train_batch(0)


def test_other_characters_than_the_vocabularys(text_file):
  with pytest.raises(
    DataError, match=r"14 of its characters are outside the vocabulary of 3 characters: '2', '3'"
  ):
    data.load_validation(config(text_file), tokenizers.characters('01'))


def test_bpe_is_trained_on_the_training_part_alone(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('abab ' * 180 + 'zqzq ' * 20, encoding='utf-8')
  pieces = data.load(config(f'text:{path}', tokenizer='bpe:300')).tokenizer.pieces
  assert b'ab' in pieces
  assert b'zq' not in pieces


def cached(monkeypatch, tmp_path, source, **changes):
  monkeypatch.setattr(corpus, 'CACHED_FROM', 0)
  return data.load(config(source, cache_dir=str(tmp_path / 'cache'), **changes))


@pytest.mark.parametrize('tokenizer', ['characters', 'bpe:300'])
@pytest.mark.parametrize('packing', ['stream', 'documents'])
def test_the_cache_gives_the_same_batches(tokenizer, packing, documents_file, tmp_path, monkeypatch):
  changes = {'tokenizer': tokenizer, 'packing': packing}
  plain = data.load(config(documents_file[0], **changes))
  written = cached(monkeypatch, tmp_path, documents_file[0], **changes)
  assert written.facts.pop('cache').endswith('(written)')
  monkeypatch.setattr(corpus, 'survey', None)  # a hit neither reads nor tokenizes
  found = cached(monkeypatch, tmp_path, documents_file[0], **changes)
  assert found.facts.pop('cache').endswith('(found)')
  assert found.facts == written.facts == plain.facts
  assert found.tokenizer.sha256 == plain.tokenizer.sha256
  for step in range(5):
    assert_equal(found.train_batch(step), plain.train_batch(step))
  for first, second in zip(found.validation_batches(), plain.validation_batches(), strict=True):
    assert_equal(first, second)
  assert len(list((tmp_path / 'cache' / 'tokens').iterdir())) == 1  # nothing temporary is left


def test_the_cache_follows_content_split_and_tokenizer(documents_file, tmp_path, monkeypatch):
  source, _ = documents_file
  changes = [{}, {'tokenizer': 'characters'}, {'validation_fraction': 0.3}]
  assert all(
    cached(monkeypatch, tmp_path, source, **change).facts['cache'].endswith('(written)') for change in changes
  )
  assert cached(monkeypatch, tmp_path, source, sequence_length=8).facts['cache'].endswith('(found)')
  with open(source.removeprefix('jsonl:'), 'a', encoding='utf-8') as stream:
    stream.write('\n{"text": "one more"}')
  assert cached(monkeypatch, tmp_path, source).facts['cache'].endswith('(written)')


@pytest.mark.parametrize('kind', ['characters', 'bytes', 'bpe:300'])
def test_a_run_that_brings_its_tokenizer_finds_what_was_written_when_it_was_made(
  kind, documents_file, tmp_path, monkeypatch
):
  source, _ = documents_file
  made = cached(monkeypatch, tmp_path, source, tokenizer=kind)
  again = config(source, tokenizer=kind, cache_dir=str(tmp_path / 'cache'))
  assert data.load(again, made.tokenizer).facts['cache'].endswith('(found)')
  other = tokenizers.build(kind, ''.join(map(chr, range(1, 200))), lambda: ['other text'] * 9, True)
  if kind != 'bytes':  # of which there is but one
    assert data.load(again, other).facts['cache'].endswith('(written)')
    assert data.load(again, made.tokenizer).facts['cache'].endswith('(found)')


@pytest.mark.parametrize('harm', ['cut', 'flip', 'remove', 'manifest'])
def test_a_broken_cache_is_made_anew(harm, documents_file, tmp_path, monkeypatch):
  before = cached(monkeypatch, tmp_path, documents_file[0])
  folder = next((tmp_path / 'cache' / 'tokens').iterdir())
  path = folder / ('manifest.json' if harm == 'manifest' else 'train.npy')
  content = bytearray(path.read_bytes())
  if harm == 'remove':
    path.unlink()
  else:
    content[-100] ^= 4
    path.write_bytes(content[:-7] if harm in ('cut', 'manifest') else content)
  after = cached(monkeypatch, tmp_path, documents_file[0])
  assert after.facts['cache'].endswith('(written)')
  assert_equal(before.train_batch(3), after.train_batch(3))  # and what is open stays readable
  assert cached(monkeypatch, tmp_path, documents_file[0]).facts['cache'].endswith('(found)')


def test_large_vocabularies_have_wider_tokens(tmp_path):
  (tmp_path / 'a.txt').write_text(''.join(map(chr, range(0xE000, 0xE000 + 70_000))), encoding='utf-8')
  dataset = data.load(config(f'text:{tmp_path}/a.txt', tokenizer='characters'))
  assert dataset.tokenizer.vocabulary_size == 70_001
  last = list(dataset.validation_batches())[-1]
  assert dataset.tokenizer.decode([last['targets'].max()]) == chr(0xE000 + 70_000 - 1)


def test_the_cache_that_cannot_be_written(documents_file, tmp_path, monkeypatch):
  (tmp_path / 'cache').write_text('in the way', encoding='utf-8')
  with pytest.raises(StorageError, match=r'cannot be written \(.*\); set another data.cache_dir'):
    cached(monkeypatch, tmp_path, documents_file[0])


def test_default_cache_folder(monkeypatch, tmp_path):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert corpus.cache.default_folder() == tmp_path / 'aigc_jax'


def test_texts_that_are_too_short(tmp_path):
  path = tmp_path / 'a.txt'
  path.write_text('x' * 50, encoding='utf-8')
  source = f'text:{path}'
  expected = (
    f'{source}: the training part has 45 tokens, too few for a window of 65 (data.sequence_length=64 and the '
    'token after): use a longer text or data.sequence_length=44 or less'
  )
  with pytest.raises(DataError) as error:
    data.load(config(source, sequence_length=64))
  assert str(error.value) == expected
  data.load(config(source, sequence_length=44))
  path.write_text('x' * 20, encoding='utf-8')
  with pytest.raises(
    DataError, match='validation part has 1 tokens, too few for a window of 2: use a longer text'
  ):
    data.load(config(source, validation_fraction=0.01))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'sequence_length': 0}, 'config.data.sequence_length: 0 is out of range'),
    ({'batch_size': -1}, 'config.data.batch_size: -1 is out of range'),
    ({'batch_size': 2.5}, 'config.data.batch_size: 2.5 is not an int'),
    ({'validation_fraction': 1.0}, 'config.data.validation_fraction: 1.0 is out of range'),
    ({'validation_fraction': float('nan')}, 'config.data.validation_fraction: nan is not a finite'),
    ({'packing': 'rows'}, "config.data.packing: 'rows' is not known"),
    ({'tokenizer': 'gpt-2'}, "did you mean 'gpt2'"),
    ({'batchsize': 4}, "config.data.batchsize: no such key; did you mean 'data.batch_size'"),
  ],
)
def test_bad_configs(change, message, text_file):
  with pytest.raises(UsageError, match=message):
    data.load(config(text_file, **change))
