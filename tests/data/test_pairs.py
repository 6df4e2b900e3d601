"""Pairs of texts: files, buckets, epochs, and what is wrong in a file said by its line."""

import collections
import gzip
import json

import numpy as np
import pytest

from aigc_jax import data
from aigc_jax.data import pairs, sources, synthetic_pairs, tokenizers
from aigc_jax.errors import DataError, UsageError

PAIRS = [(f'{"ab" * (i % 9)}c{i}', f'译{"文" * (i % 5)}{i}') for i in range(40)]
COMMON = {'validation_fraction': 0.25, 'batch_size': 4}


def written(tmp_path, content, name='pairs.tsv'):
  path = tmp_path / name
  (gzip.open if name.endswith('.gz') else open)(path, 'wt', encoding='utf-8').write(content)
  return path


def tsv(tmp_path, rows=PAIRS, name='pairs.tsv'):
  return f'tsv:{written(tmp_path, "".join(f"{a}	{b}" + chr(10) for a, b in rows), name)}'


def load(source, **fields):
  return data.load({'source': source, **COMMON, **fields}, form='pairs')


def texts_of(dataset, batch):
  """[(source, target)] of the rows that count, read back from tokens; the end of each is checked."""
  found, known = [], dataset.tokenizer
  for i in range(len(batch['lengths'])):
    if not batch['mask'][i].any():
      assert batch['lengths'][i] == 0
      continue
    source, count = batch['sources'][i, : batch['lengths'][i]], int(batch['mask'][i].sum())
    targets, inputs = batch['targets'][i, :count], batch['inputs'][i, :count]
    assert source[-1] == known.source.end_of_text
    assert targets[-1] == inputs[0] == known.target.end_of_text
    np.testing.assert_array_equal(inputs[1:], targets[:-1])
    assert not batch['mask'][i, count:].any()
    found.append((known.source.decode(source[:-1]), known.target.decode(targets[:-1])))
  return found


@pytest.mark.parametrize('buckets', [1, 3, 7])
@pytest.mark.parametrize('tokenizer', ['characters', 'bytes', 'bpe:300'])
def test_an_epoch_has_each_pair_once_in_few_shapes(tmp_path, buckets, tokenizer):
  dataset = load(tsv(tmp_path), buckets=buckets, tokenizer=tokenizer)
  steps = dataset.facts['steps_per_epoch']
  shapes = {tuple(sorted((name, array.shape) for name, array in batch.items())) for batch in dataset.shapes()}
  assert 1 <= len(shapes) <= buckets
  validation = [pair for batch in dataset.validation_batches() for pair in texts_of(dataset, batch)]
  orders = []
  for epoch in range(2):
    batches = [dataset.train_batch(step) for step in range(epoch * steps, (epoch + 1) * steps)]
    assert {tuple(sorted((n, a.shape) for n, a in batch.items())) for batch in batches} == shapes
    train = [pair for batch in batches for pair in texts_of(dataset, batch)]
    assert collections.Counter(train + validation) == collections.Counter(PAIRS)
    orders.append(train)
  assert orders[0] != orders[1]
  assert sorted(validation) == sorted(dataset.pairs)
  assert len(validation) == 10
  assert dataset.validation_size == len(list(dataset.validation_batches()))


def test_a_batch_is_a_function_of_seed_and_step(tmp_path):
  source = tsv(tmp_path)
  first, again, other = (load(source, buckets=3, seed=seed) for seed in (1, 1, 2))
  unlike = 0
  for step in (0, 3, 17, 4):
    for name, array in first.train_batch(step).items():
      np.testing.assert_array_equal(array, again.train_batch(step)[name])
    mine, theirs = first.train_batch(step)['sources'], other.train_batch(step)['sources']
    unlike += mine.shape != theirs.shape or not np.array_equal(mine, theirs)
  assert unlike >= 3
  assert first.pairs == other.pairs  # the split is the same for every seed


@pytest.mark.parametrize('name', ['pairs.tsv', 'pairs.tsv.gz', 'named.tsv', 'pairs.jsonl', 'named.jsonl.gz'])
def test_files_of_each_kind_hold_the_same_pairs(tmp_path, name):
  fields = {}
  if '.tsv' in name:
    rows = [('note', 'zh', 'en')] if 'named' in name else []
    rows += [('n', target, source) if rows else (source, target) for source, target in PAIRS]
    content = ''.join('\t'.join(row) + '\n' for row in rows)
  else:
    names = ('en', 'zh') if 'named' in name else ('source', 'target')
    content = ''.join(json.dumps(dict(zip(names, pair, strict=True))) + '\n\n' for pair in PAIRS)
  if 'named' in name:
    fields = {'source_field': 'en', 'target_field': 'zh'}
  kind = name.split('.')[1]
  found = load(f'{kind}:{written(tmp_path, content, name)}', **fields)
  plain = load(tsv(tmp_path, name='plain.tsv'))
  assert found.pairs == plain.pairs
  np.testing.assert_array_equal(found.train_batch(0)['sources'], plain.train_batch(0)['sources'])


def test_json_lists_are_lines_and_poems_are_halves(tmp_path):
  path = written(
    tmp_path,
    json.dumps({'source': ['a', 'b'], 'target': 'c'}) + '\n' + json.dumps({'source': 'd', 'target': 'e'}),
    'a.jsonl',
  )
  _, found = pairs.read(dict.fromkeys(('source_field', 'target_field')), f'jsonl:{path}')
  assert [pair[:2] for pair in found] == [('a\nb', 'c'), ('d', 'e')]
  poem = {'title': '题', 'lines': ['一', '二', '三']}
  assert pairs.halves(poem, 'x')[:2] == ('题\n一\n二', '三')
  assert pairs.halves({'title': '题', 'lines': ['一']}, 'x') is None


@pytest.mark.parametrize(
  ('content', 'name', 'message'),
  [
    ('a\tb\n\tc\n', 'p.tsv', r'p.tsv, line 2: the source is empty'),
    ('a\tb\nc\t  \n', 'p.tsv', r'p.tsv, line 2: the target is empty'),
    ('a\tb\nc\n', 'p.tsv', r'p.tsv, line 2: 1 columns set apart by tabs; 2 are needed'),
    ('{"source": "a", "target": "b"}\n{"source": "a"}\n', 'p.jsonl', r"p.jsonl, line 2: no field 'target'"),
    ('{"source": "a", "target": 3}\n', 'p.jsonl', r"line 1: field 'target' holds a number, not a string"),
    ('{"source": "", "target": "b"}\n', 'p.jsonl', r'line 1: the source is empty'),
    ('', 'p.tsv', r'p.tsv is empty'),
    ('\n\n', 'p.tsv', r'holds no pair'),
  ],
)
def test_what_is_wrong_in_a_file_is_said_by_its_line(tmp_path, content, name, message):
  with pytest.raises(DataError, match=message) as raised:
    load(f'{name.split(".")[1]}:{written(tmp_path, content, name)}')
  assert '\n' not in str(raised.value)


def test_long_texts_are_cut_with_their_count_or_refused(tmp_path):
  source = tsv(tmp_path, [('a' * 20, 'b'), ('a', 'b' * 30), ('a', 'b'), ('a', 'b' * 11)])
  dataset = load(source, source_length=10, target_length=12, validation_fraction=0.25)
  assert (dataset.facts['cut_sources'], dataset.facts['cut_targets']) == (1, 1)
  end = dataset.tokenizer.end_of_text
  rows = [
    row
    for batch in [dataset.train_batch(0), *dataset.validation_batches()]
    for row in zip(*batch.values(), strict=True)
  ]
  long = [dict(zip(dataset.train_batch(0), row, strict=True)) for row in rows]
  cut = [row for row in long if row['lengths'] == 10]
  assert len(cut) == 1
  assert cut[0]['sources'][9] == end  # a source keeps its end
  cut = [row for row in long if row['mask'].sum() == 12]
  ends = sorted(row['targets'][11] == end for row in cut)
  assert ends == [False, True]  # a target that is cut does not end; one that fits just does
  with pytest.raises(
    UsageError, match=r'line 1: the source has 21 tokens, all in all, and config\.data\.source_len'
  ):
    load(source, source_length=10, too_long='refuse')


TEMPLATE = 'Q: {source}\nA:'


def rows_of(dataset):
  """(tokens, length) of the sources of two steps and of all that validates."""
  batches = [*(dataset.train_batch(step) for step in range(2)), *dataset.validation_batches()]
  for batch in batches:
    yield from ((tokens, n) for tokens, n in zip(batch['sources'], batch['lengths'], strict=True) if n)


@pytest.mark.parametrize('tokenizer', ['characters', 'bytes', 'bpe:300'])
def test_a_template_stands_around_sources_and_is_never_cut(tmp_path, tokenizer):
  letters = ''.join(np.random.default_rng(0).choice(list('stuvwxyz'), 200))
  rows = [*PAIRS[:9], (letters, 'y')]
  dataset = load(tsv(tmp_path, rows), source_template=TEMPLATE, source_length=40, tokenizer=tokenizer)
  known, read = dataset.tokenizer, []
  for tokens, length in rows_of(dataset):
    assert known.end_of_text not in tokens[:length]  # the target follows at once
    read.append(known.decode(tokens[:length]))
  wrapped = {TEMPLATE.replace('{source}', source) for source, _ in rows[:9]}
  *_, long = sorted(read, key=len)
  assert set(read) - {long} <= wrapped
  assert long == TEMPLATE.replace('{source}', letters[: len(long) - 6])
  # the tokens are those of the text as a whole, where it was cut too
  ids = {tuple(tokens[:length].tolist()) for tokens, length in rows_of(dataset)}
  assert ids == {tuple(known.encode(text).tolist()) for text in read}
  assert dataset.facts['cut_sources'] == 1
  assert 38 <= max(len(known.encode(text)) for text in read) <= 40  # characters are left out, not tokens
  assert set(dataset.pairs) <= set(rows)  # for people and for scores: as the file has them


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'source_template': 'Q:'}, r"config.data.source_template: 'Q:' must hold \{source\} once"),
    ({'source_template': '{source}{source}'}, 'must hold'),
    ({'source_template': TEMPLATE, 'source_length': 6}, 'config.data.source_length: 6 .* use 7 or more'),
  ],
)
def test_templates_without_a_place_or_room_are_refused(tmp_path, fields, message):
  with pytest.raises(UsageError, match=message) as raised:
    load(tsv(tmp_path), tokenizer='bytes', **fields)
  assert '\n' not in str(raised.value)


def test_a_tokenizer_from_elsewhere_gets_an_end_and_may_lack_characters(tmp_path):
  source = tsv(tmp_path, [('ab', 'c')] * 5)
  for given, size in ((tokenizers.byte_values(), 257), (tokenizers.characters('abc'), 5)):
    config = {'source': source, 'batch_size': 1}
    dataset = data.load(config, given, form='pairs')
    assert dataset.tokenizer.vocabulary_size == size
    assert texts_of(dataset, dataset.train_batch(0)) == [('ab', 'c')]
    assert tokenizers.with_end(dataset.tokenizer) is dataset.tokenizer
  with pytest.raises(UsageError, match=r"config.data.source_template: 'Q', ':', ' ', 'A' .* 4 characters"):
    data.load(config | {'source_template': TEMPLATE}, tokenizers.characters('abc'), form='pairs')


def test_poems_are_written_to_the_fields_that_are_named():
  dataset = data.load(
    {'source': 'bundled:song_ci', 'source_field': 'title', 'target_field': 'lines'}, form='pairs'
  )
  path, _ = sources.find_bundled('', 'song_ci', pairs.BUNDLED)
  poems = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
  assert set(dataset.pairs) <= {(poem['title'], '\n'.join(poem['lines'])) for poem in poems}


def test_two_vocabularies_are_saved_and_come_back(tmp_path):
  dataset = load(tsv(tmp_path), tokenizer='characters', source_tokenizer='bpe:280')
  known = dataset.tokenizer
  known.save(tmp_path / 'tokenizer.json')
  again = tokenizers.load(tmp_path / 'tokenizer.json')
  assert again.sha256 == known.sha256
  assert again.source.vocabulary_size == dataset.facts['source_vocabulary_size'] != known.vocabulary_size
  assert again.source.decode(again.source.encode('abc1')) == 'abc1'
  assert again.target.decode(again.target.encode('译文1')) == '译文1'
  with pytest.raises(DataError, match='line 1: outside the vocabulary'):
    data.load_validation({'source': tsv(tmp_path, [('a', 'Ω')], 'o.tsv')}, again, form='pairs')


@pytest.mark.parametrize('name', ['copy', 'reverse', 'addition'])
def test_synthetic_pairs_are_right_and_what_validates_is_never_trained_on(name):
  config = {'source': f'synthetic:{name}', 'longest': 3, 'batch_size': 64, 'validation_pairs': 200}
  dataset = data.load(config, form='synthetic_pairs')
  answer = {
    'copy': str,
    'reverse': lambda s: s[::-1],
    'addition': lambda s: str(sum(map(int, s.split('+')))),
  }[name]
  held = {source for source, _ in dataset.pairs}
  if name == 'addition':
    held |= {'+'.join(reversed(source.split('+'))) for source in held}
  assert len(dataset.pairs) == 200
  seen = set()
  for step in range(100):
    for source, target in texts_of(dataset, dataset.train_batch(step)):
      assert target == answer(source)
      seen.add(source)
  assert len(seen) > 1500
  assert not seen & held
  assert all(target == answer(source) for source, target in dataset.pairs)
  again = data.load(config | {'seed': 0}, form='synthetic_pairs').train_batch(5)
  np.testing.assert_array_equal(again['sources'], dataset.train_batch(5)['sources'])
  other = data.load(config | {'seed': 1}, form='synthetic_pairs')
  assert other.pairs == dataset.pairs
  assert not np.array_equal(other.train_batch(5)['sources'], again['sources'])


def test_unknown_sources_are_refused_with_the_known_ones():
  with pytest.raises(UsageError, match="did you mean 'addition'"):
    synthetic_pairs.find('synthetic:adition')
  with pytest.raises(UsageError, match='is not of the form kind:place'):
    load('nothing')
  with pytest.raises(UsageError, match="did you mean 'en_zh'"):
    load('bundled:en_zn')
