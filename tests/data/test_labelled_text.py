import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from aigc_jax.data import labelled_text, tokenizers
from aigc_jax.errors import DataError, UsageError

TEXTS = [(f'{"abc"[i % 3]}{i:03}' * (1 + i % 4), ('cat', 'ant', 'bee')[i % 3]) for i in range(40)]


def config(source, **changes):
  return {'source': source, 'tokenizer': 'bytes', 'sequence_length': 12, 'batch_size': 6, 'seed': 2} | changes


def write(path, content):
  path.write_bytes(content.encode('utf-8') if isinstance(content, str) else content)
  return f'{path.name.split(".")[1]}:{path}'


@pytest.fixture
def tsv(tmp_path):
  lines = [f'{i}\t{text}\t{label}' for i, (text, label) in enumerate(TEXTS)]
  return write(tmp_path / 'a.tsv', 'id\ttext\tlabel\n' + '\n'.join(lines))


def rows_of(dataset, batch):
  """[(text, class)] of the rows that count."""
  found = []
  for ids, length, label, mask in zip(
    *(batch[n] for n in ('inputs', 'lengths', 'labels', 'mask')), strict=True
  ):
    assert mask == 0 or 0 < length <= len(ids)
    assert not ids[length:].any()
    if mask:
      found.append((dataset.tokenizer.decode(ids[:length]), dataset.facts['class_names'][label]))
  return found


def test_batches_hold_all_texts_with_their_classes(tsv):
  dataset = labelled_text.load(config(tsv))
  facts = dataset.facts
  assert facts['size'] == '36 and 4 texts in 3 classes'
  assert (facts['classes'], facts['class_names']) == (3, ['ant', 'bee', 'cat'])
  assert (facts['steps_per_epoch'], facts['vocabulary_size']) == (6.0, 256)
  assert 'the first 36 of 40 texts train' in facts['split']
  json.dumps(facts)
  batch = dataset.example()
  assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
    'inputs': ((6, 12), np.int32),
    'lengths': ((6,), np.int32),
    'labels': ((6,), np.int32),
    'mask': ((6,), np.float32),
  }
  epochs = [
    sorted(r for step in range(6) for r in rows_of(dataset, dataset.train_batch(6 * e + step)))
    for e in (0, 1)
  ]
  assert epochs[0] == epochs[1]
  validation = [row for batch in dataset.validation_batches() for row in rows_of(dataset, batch)]
  assert dataset.validation_size == 1
  cut = [(text[:12], label) for text, label in TEXTS]
  assert sorted(epochs[0] + validation) == sorted(cut)
  assert facts['cut_texts'] == sum(len(text) > 12 for text, _ in TEXTS) == 10


def test_a_batch_is_a_function_of_seed_and_step(tsv):
  first, second, other = (labelled_text.load(config(tsv, seed=seed)) for seed in (2, 2, 3))
  forward = [first.train_batch(step) for step in range(20)]
  for step in (19, 0, np.int32(7)):
    for name, array in second.train_batch(step).items():
      np.testing.assert_array_equal(array, forward[step][name])
  assert any((other.train_batch(i)['inputs'] != forward[i]['inputs']).any() for i in range(3))
  validation = [next(dataset.validation_batches())['inputs'] for dataset in (first, other)]
  np.testing.assert_array_equal(*validation)  # the split is the same for every seed


def test_all_forms_read_alike(tsv, tmp_path):
  expected = labelled_text.read(labelled_text.LabelledTextData().__dict__, tsv)[1]
  plain = ''.join(f'{label}\tx\t{text}\r\n' for text, label in TEXTS)
  records = '\n\n'.join(json.dumps({'review': text, 'kind': label}) for text, label in TEXTS)
  forms = [
    (write(tmp_path / 'b.tsv', '\ufeff' + plain), '1', '3'),
    (write(tmp_path / 'd.jsonl', '\ufeff' + records), 'kind', 'review'),
    (
      write(tmp_path / 'e.tsv', Path(tsv.removeprefix('tsv:')).read_text(encoding='utf-8') + '\n\n'),
      '3',
      'text',
    ),
  ]
  packed = tmp_path / 'c.tsv.gz'
  packed.write_bytes(gzip.compress(plain.encode()))
  for source, label, text in [*forms, (f'tsv:{packed}', '1', '3')]:
    _, found = labelled_text.read({'label_field': label, 'text_field': text}, source)
    assert [example[:2] for example in found] == [example[:2] for example in expected] == TEXTS


def test_whole_numbers_are_classes_in_json(tmp_path):
  lines = '\n'.join(json.dumps({'text': 'ab'[i % 2], 'label': i % 2}) for i in range(8))
  dataset = labelled_text.load(config(write(tmp_path / 'a.jsonl', lines)))
  assert dataset.facts['class_names'] == ['0', '1']


@pytest.mark.parametrize('kind', ['characters', 'bytes', 'bpe:300', 'gpt2'])
def test_tokenizers(kind, tsv):
  dataset = labelled_text.load(config(tsv, tokenizer=kind, sequence_length=99))
  found = [row for step in range(6) for row in rows_of(dataset, dataset.train_batch(step))]
  found += rows_of(dataset, next(dataset.validation_batches()))
  assert sorted(found) == sorted(TEXTS)
  assert dataset.facts['cut_texts'] == 0
  again = labelled_text.load(config(tsv), tokenizer=dataset.tokenizer)
  assert again.tokenizer is dataset.tokenizer


def test_the_character_vocabulary_is_of_all_texts_and_bpe_of_those_that_train(tmp_path):
  train = write(tmp_path / 'a.tsv', 'x\tabab ababab\n' * 20)
  other = write(tmp_path / 'b.tsv', 'x\tzqzq zqzqzq\n' * 20)
  changes = {'validation_source': other, 'label_field': '1', 'text_field': '2'}
  load = lambda kind: labelled_text.load(config(train, tokenizer=kind, **changes))
  assert load('characters').tokenizer.saved['characters'] == '\n abqz'
  pieces = load('bpe:300').tokenizer.pieces
  assert b'ab' in pieces
  assert b'zq' not in pieces
  assert load('bytes').facts['validation_source'] == other


def test_validation_alone(tsv):
  tokenizer = tokenizers.byte_values()
  dataset = labelled_text.load_validation(config(tsv), tokenizer, ['cat', 'dog', 'bee', 'ant'])
  found = [row for batch in dataset.validation_batches() for row in rows_of(dataset, batch)]
  assert found == [(text[:12], label) for text, label in TEXTS]
  assert dataset.validation_size == 7
  with pytest.raises(ValueError, match='validation alone'):
    dataset.train_batch(0)


def message_of(source, error=DataError, load=labelled_text.load, **changes):
  with pytest.raises(error) as caught:
    load(config(source, **changes))
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_classes_and_characters_that_training_lacks(tsv, tmp_path):
  other = write(tmp_path / 'b.tsv', 'label\ttext\nant\tone\nbees\ttwo\n')
  expected = f"{tmp_path}/b.tsv, line 3: class 'bees' is none of those that train; did you mean 'bee'? "
  assert message_of(tsv, validation_source=other).startswith(expected.rstrip())
  single = write(tmp_path / 'c.tsv', 'label\ttext\n' + ''.join(f'{i}\tx\n' for i in range(10)))
  assert 'is none of those that train; ' in message_of(single)  # a class with one text
  load = lambda names: lambda c: labelled_text.load_validation(c, tokenizers.characters('abc0123'), names)
  assert "a.tsv, line 3: class 'ant' is none" in message_of(tsv, load=lambda c: labelled_text.load_validation(
    c, tokenizers.byte_values(), ['cat', 'bee']))  # fmt: skip
  unknown = message_of(tsv, load=load(['ant', 'bee', 'cat']))
  assert unknown == f"{tmp_path}/a.tsv, line 6: outside the vocabulary of 8 characters: '4'"


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('label\ttext\nx\ta\ny\n', 'a.tsv, line 3: 1 columns set apart by tabs; 2 are needed'),
    ('label\ttext\nx\ta\ny\t\n', 'a.tsv, line 3: the text is empty'),
    ('label\ttext\n\ta\n', 'a.tsv, line 2: the label is empty'),
    (
      'lable\ttext\nx\ta\n',
      "a.tsv, line 1: no column 'label'; did you mean 'lable'? its columns are lable, text",
    ),
    ('', 'a.tsv is empty'),
    ('label\ttext\n', 'a.tsv holds no text'),
    ('label\ttext\nx\ta\n', 'a.tsv: 1 texts cannot be split'),
    (b'label\ttext\nx\ta\ny\t\xff\n', 'a.tsv, line 3: not UTF-8 at byte offset 17 (byte 0xff)'),
  ],
)
def test_broken_tsv(content, message, tmp_path):
  assert message in message_of(write(tmp_path / 'a.tsv', content))


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{"text": "a"}', "a.jsonl, line 2: no field 'label'; its fields are text; choose by data.label_field"),
    ('{"text": 3, "label": "x"}', "line 2: field 'text' holds a number, not a string or a list of strings"),
    ('{"text": "a", "label": 1.5}', "line 2: field 'label' holds a number, not a string or a whole number"),
    ('{"text": "a", "label": true}', "line 2: field 'label' holds a boolean"),
    ('{"text": "", "label": "x"}', 'line 2: the text is empty'),
    ('[1]', 'line 2: a list, not a JSON object'),
    ('{"text"', 'line 2: not JSON: '),
    (b'"\xff"', 'line 2: not UTF-8 at byte offset 29 (byte 0xff)'),
  ],
)
def test_broken_json_lines(line, message, tmp_path):
  first = b'{"text": "a", "label": "x"}\n'
  line = line if isinstance(line, bytes) else line.encode('utf-8')
  assert message in message_of(write(tmp_path / 'a.jsonl', first + line + b'\n' + first))


def test_other_sources(tmp_path):
  assert 'the kinds are tsv:PATH, jsonl:PATH, bundled:song_ci' in message_of('text:a', UsageError)
  assert "no 'there-is-none.tsv'" in message_of('tsv:there-is-none.tsv')
  assert 'is a folder; tsv takes one file' in message_of(f'tsv:{tmp_path}')
  assert 'there are characters, bytes' in message_of('tsv:none', UsageError, tokenizer='words')
  (tmp_path / 'a.tsv.gz').write_bytes(b'label\ttext\n')
  assert 'a.tsv.gz: not a whole gzip file' in message_of(f'tsv:{tmp_path}/a.tsv.gz')


def test_poems_by_tune_or_author():
  fields = {'label_field': 'title', 'text_field': 'lines', 'tokenizer': 'characters', 'sequence_length': 64}
  dataset = labelled_text.load(config('bundled:song_ci', most_frequent_classes=3, **fields))
  assert dataset.facts['class_names'] == sorted(['浣溪沙', '菩萨蛮', '鹧鸪天'])
  assert dataset.facts['train_texts'] + dataset.facts['validation_texts'] == 307 + 240 + 213
  for text, tune in rows_of(dataset, dataset.example()):
    if tune == '菩萨蛮':  # a line of seven characters and a full stop
      assert len(text.split('\n')[0]) == 8
  assert 'there are song_ci' in message_of('bundled:moby_dick', UsageError)


def test_rare_classes_are_left_out_of_every_part(tmp_path):
  line = lambda label: json.dumps({'text': ['a', 'b'], 'label': label})
  train = write(tmp_path / 'a.jsonl', '\n'.join(line(label) for label in 'xyzyx'))
  others = write(tmp_path / 'b.jsonl', '\n'.join(line(label) for label in 'zxw'))
  kept = config(train, validation_source=others, most_frequent_classes=2)
  dataset = labelled_text.load(kept)
  assert dataset.facts['class_names'] == ['x', 'y']
  assert (dataset.facts['train_texts'], dataset.facts['validation_texts']) == (4, 1)
  assert [text for text, _ in rows_of(dataset, next(dataset.validation_batches()))] == ['a\nb']
  alone = labelled_text.load_validation(
    config(others, most_frequent_classes=2), dataset.tokenizer, ['x', 'y']
  )
  assert alone.facts['validation_texts'] == 1
  with pytest.raises(DataError, match="class 'z' is none of those that train"):
    labelled_text.load_validation(config(others), dataset.tokenizer, ['x', 'y'])
  with pytest.raises(DataError, match='line 1: no text here or below is of a class that was kept'):
    labelled_text.load_validation(config(others, most_frequent_classes=2), dataset.tokenizer, ['q'])
