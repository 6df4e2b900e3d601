"""Windows of text with the places where words begin: against regular expressions over the text itself."""

import json
import re

import numpy as np
import pytest

from aigc_jax import data
from aigc_jax.data import masked_text, tokenizers
from aigc_jax.errors import DataError

TEXT = (
  'Call me  Ishmael.\n\nSome years ago - never mind\thow long.\n春花秋月何时了，往事 知多少 abc深度learning 学习。\n'
  'naïve café 🐳🐳 whale 𠮷野家 e\u0301\u3000問天  end '
)
IDEOGRAPH = '\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f\U00030000-\U000323af'
WORD = re.compile(rf'\s*(?:[{IDEOGRAPH}]|[^\s{IDEOGRAPH}]+)|\s+')
SPECIFICATIONS = ['characters', 'bytes', 'bpe:300', 'gpt2']


def begins_by_regex(tokenizer, ids, text):
  """For each token, whether the byte of `text` that it starts at is the first of a word."""
  firsts = {len(text[: found.start()].encode()) for found in WORD.finditer(text)}
  place, found = 0, []
  for token in ids.tolist():
    found.append(place in firsts)
    place += len(tokenizer.pieces[token])
  assert place == len(text.encode())
  return np.array(found)


@pytest.mark.parametrize('at_once', [3, 17, 1 << 20])
@pytest.mark.parametrize('specification', SPECIFICATIONS)
def test_words_begin_where_a_regular_expression_finds_them(specification, at_once, monkeypatch):
  monkeypatch.setattr(masked_text, 'AT_ONCE', at_once)  # chunks are cut within words and characters
  tokenizer = tokenizers.build(specification, TEXT, lambda: [TEXT])
  ids = tokenizer.encode(TEXT)
  found, expected = masked_text.word_begins(ids, tokenizer), begins_by_regex(tokenizer, ids, TEXT)
  np.testing.assert_array_equal(found, expected)
  assert 0.05 < found.mean() < 0.9
  leads = np.array([tokenizer.pieces[i][0] & 0xC0 != 0x80 for i in ids.tolist()])
  assert not found[~leads].any(), 'a continuation byte never begins a word'


def test_the_end_of_a_document_is_a_word_of_its_own():
  tokenizer = tokenizers.characters('ab ', end_of_text=True)
  ids = np.concatenate([tokenizer.encode('ab'), [tokenizer.end_of_text], tokenizer.encode(' ab')])
  assert masked_text.word_begins(ids, tokenizer).tolist() == [True, False, True, True, False, False]


def config(source, **fields):
  return {'source': source, 'sequence_length': 8, 'batch_size': 3, 'validation_fraction': 0.5} | fields


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  path = tmp_path_factory.mktemp('masked') / 'text.txt'
  path.write_text(TEXT, encoding='utf-8')
  return f'text:{path}'


@pytest.mark.parametrize('specification', ['characters', 'bytes', 'bpe:300'])
def test_validation_holds_every_token_once_and_pads_the_last(source, specification):
  dataset = data.load(config(source, tokenizer=specification), form='masked_text')
  found = list(dataset.validation_batches())
  assert len(found) == dataset.validation_size
  rows = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
  count = len(TEXT) - len(TEXT) // 2
  ids = dataset.tokenizer.encode(TEXT[-count:])
  inside = rows['mask'] > 0
  np.testing.assert_array_equal(rows['inputs'][inside], ids)
  np.testing.assert_array_equal(
    rows['word_begins'][inside], begins_by_regex(dataset.tokenizer, ids, TEXT[-count:])
  )
  np.testing.assert_array_equal(np.arange(8) < rows['lengths'][:, None], inside)
  assert not rows['inputs'][~inside].any()
  real = -(-len(ids) // 8)
  assert (rows['lengths'] % 8).any(), 'a row is part padding'
  assert (rows['lengths'] == 0).sum() == -real % 3
  np.testing.assert_array_equal(rows['rows'][:real], np.arange(real))
  assert rows['word_begins'].dtype == bool
  assert dataset.facts['vocabulary_size'] == dataset.tokenizer.vocabulary_size
  assert dataset.tokenizer.mask_token == dataset.tokenizer.vocabulary_size - 1


def test_training_windows_are_pieces_of_the_text(source):
  dataset = data.load(config(source), form='masked_text')
  train = TEXT[: len(TEXT) // 2]
  flags = begins_by_regex(dataset.tokenizer, dataset.tokenizer.encode(train), train)
  seen = set()
  for step in range(30):
    batch = dataset.train_batch(step)
    assert batch['inputs'].dtype == np.int32
    assert (batch['lengths'] == 8).all()
    assert (batch['mask'] == 1).all()
    for row, begins in zip(batch['inputs'], batch['word_begins'], strict=True):
      place = train.index(dataset.tokenizer.decode(row))
      seen.add(place)
      np.testing.assert_array_equal(begins, flags[place : place + 8])
  assert min(seen) == 0
  assert max(seen) == 47, 'six windows in a row, of 62 characters, begin at 0 to 7'
  again = data.load(config(source), form='masked_text').train_batch(3)
  for name, array in dataset.train_batch(3).items():
    np.testing.assert_array_equal(again[name], array)


def test_packed_documents_are_whole(tmp_path):
  texts = ['ab cd', '春花', 'a', 'efg h', 'b c', 'ab', 'fg', 'de']
  path = tmp_path / 'poems.jsonl'
  path.write_text('\n'.join(json.dumps({'text': text}) for text in texts), encoding='utf-8')
  dataset = data.load(config(f'jsonl:{path}', packing='documents', sequence_length=12), form='masked_text')
  end, found = dataset.tokenizer.end_of_text, []
  for batch in [dataset.train_batch(step) for step in range(2)] + list(dataset.validation_batches()):
    for inputs, begins, segments in zip(
      batch['inputs'], batch['word_begins'], batch['segments'], strict=True
    ):
      for number in range(1, segments.max() + 1):
        here = segments == number
        assert inputs[here][-1] == end
        text = dataset.tokenizer.decode(inputs[here][:-1])
        expected = begins_by_regex(dataset.tokenizer, inputs[here][:-1], text)
        np.testing.assert_array_equal(begins[here], [*expected, True])
        found.append(text)
    np.testing.assert_array_equal(batch['mask'] > 0, batch['segments'] > 0)
  assert set(found) == set(texts)


def test_a_trained_models_tokenizer_reads_other_text(source, tmp_path):
  tokenizer = data.load(config(source), form='masked_text').tokenizer
  dataset = data.load_validation(config(source), tokenizer, form='masked_text')
  assert dataset.tokenizer.sha256 == tokenizer.sha256
  kept = sum(int(batch['lengths'].sum()) for batch in dataset.validation_batches())
  assert kept == len(TEXT)
  with pytest.raises(DataError, match='too few for a window of 500'):
    data.load(config(source, sequence_length=500), form='masked_text')


def test_a_language_model_of_the_same_sources_still_gets_text(source):
  assert data.form_of(source, ('text', 'image_tokens')) == 'text'
  assert data.form_of(source, ('masked_text',)) == 'masked_text'
  assert data.form_of('bundled:song_ci', ('masked_text',)) == 'masked_text'
