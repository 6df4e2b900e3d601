"""Each process reads its own rows of a batch: parts of rows are those rows of the whole, for every form of data."""

import numpy as np
import pytest

from aigc_jax import data
from tests import tiny, tiny_images

TEXT = {'sequence_length': 16, 'batch_size': 6}


def configs(folder):
  """{name: (config.data, form)}; the splits do not divide into batches."""
  corpus = tiny.write_corpus(folder / 'words.txt')
  images = tiny_images.write_images(folder / 'images.npz', train=20)
  labels = folder / 'labels.tsv'
  lines = [f'{"ab"[i % 2]}\tword {i}\n' for i in range(40)]
  labels.write_text('label\ttext\n' + ''.join(lines), encoding='utf-8')
  documents = folder / 'documents.jsonl'
  documents.write_text(''.join(f'{{"text": "call me {i}"}}\n' for i in range(60)), encoding='utf-8')
  pairs = {'batch_size': 6, 'source_length': 24, 'target_length': 24}
  return {
    'stream': (TEXT | {'source': corpus}, 'text'),
    'contiguous': (TEXT | {'source': corpus, 'packing': 'contiguous'}, 'text'),
    'documents': (TEXT | {'source': f'jsonl:{documents}', 'packing': 'documents'}, 'text'),
    'masked': (TEXT | {'source': corpus}, 'masked_text'),
    'labelled': ({'source': f'tsv:{labels}', 'batch_size': 6, 'sequence_length': 16}, 'labelled_text'),
    'images': ({'source': images, 'batch_size': 6}, 'images'),
    'pairs': (
      pairs | {'source': f'tsv:{labels}', 'source_field': 'label', 'target_field': 'text', 'buckets': 2},
      'pairs',
    ),
    'synthetic': ({'source': 'synthetic:copy', 'batch_size': 6, 'validation_pairs': 20}, 'synthetic_pairs'),
  }


NAMES = ('stream', 'contiguous', 'documents', 'masked', 'labelled', 'images', 'pairs', 'synthetic')
PARTS = (
  np.array([0, 1, 2]),
  np.array([1, 4]),
  np.array([5]),
  slice(None),
)  # the last batch may have none of them


@pytest.mark.parametrize('name', NAMES)
def test_a_part_of_a_batch_is_those_rows_of_it(name, tmp_path):
  config, form = configs(tmp_path)[name]
  dataset = data.load(config, form=form)
  for part in PARTS:
    for step in (0, 1, 7, 30):
      same_rows(dataset.train_batch(step, part), dataset.train_batch(step), part)
    whole = list(dataset.validation_batches())
    found = list(dataset.validation_batches(part))
    assert len(found) == len(whole) == dataset.validation_size
    for ours, all_rows in zip(found, whole, strict=True):
      same_rows(ours, all_rows, part)
  assert len(next(iter(whole[-1].values()))) == 6


def same_rows(found, whole, part):
  assert found.keys() == whole.keys()
  for key, array in whole.items():
    assert found[key].dtype == array.dtype
    np.testing.assert_array_equal(found[key], array[part], err_msg=key)
