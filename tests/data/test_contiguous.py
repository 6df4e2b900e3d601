"""Rows that go on from batch to batch: what a carried state needs."""

import math

import numpy as np
import pytest

from aigc_jax import data
from aigc_jax.errors import DataError

LENGTH, ROWS = 16, 4


@pytest.fixture
def config(tmp_path):
  path = tmp_path / 'text.txt'
  path.write_text(''.join(f'{i:04x}' for i in range(1000)), encoding='utf-8')  # no four letters twice
  return {
    'source': f'text:{path}',
    'tokenizer': 'bytes',
    'sequence_length': LENGTH,
    'batch_size': ROWS,
    'packing': 'contiguous',
  }


def test_each_row_reads_its_own_part_in_order_epoch_after_epoch(config):
  dataset = data.load(config)
  text = dataset.tokenizer.encode(''.join(f'{i:04x}' for i in range(1000)))[:3600]  # the first nine tenths
  steps = dataset.facts['steps_per_epoch']
  assert steps == (3600 - 1) // (ROWS * LENGTH)
  batches = [dataset.train_batch(step) for step in range(int(2 * steps))]
  for epoch in (batches[: len(batches) // 2], batches[len(batches) // 2 :]):
    for row in range(ROWS):
      first = int(row * steps * LENGTH)
      read = np.concatenate([batch['inputs'][row] for batch in epoch])
      np.testing.assert_array_equal(read, text[first : first + len(read)])
      following = np.concatenate([batch['targets'][row] for batch in epoch])
      np.testing.assert_array_equal(following, text[first + 1 : first + len(read) + 1])
  begins = np.array([batch['begins'] for batch in batches])  # [steps, rows]
  assert (begins.max(1) == begins.min(1)).all()
  assert np.flatnonzero(begins[:, 0]).tolist() == [0, steps]


def test_a_text_too_short_for_all_rows_is_one_line(config):
  with pytest.raises(DataError) as error:
    data.load(config | {'batch_size': 300})
  assert 'too few for 300 rows' in str(error.value)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('rows', [1, 4, 7])
def test_the_validation_split_is_read_once_in_as_many_parts(config, rows):
  dataset = data.load(config | {'batch_size': rows})
  text = dataset.tokenizer.encode(''.join(f'{i:04x}' for i in range(1000)))[3600:]
  batches = list(dataset.validation_batches())
  assert len(batches) == dataset.validation_size == math.ceil(math.ceil(399 / rows) / LENGTH)
  read = {
    name: np.concatenate([batch[name] for batch in batches], 1) for name in ('inputs', 'targets', 'mask')
  }
  real = read['mask'] > 0
  np.testing.assert_array_equal(read['inputs'][real], text[:-1])
  np.testing.assert_array_equal(read['targets'][real], text[1:])
  assert (np.diff(read['mask'], axis=1) <= 0).all(), 'padding is at the end of a part'
  assert [batch['begins'].tolist() for batch in batches] == [
    [float(i == 0)] * rows for i in range(len(batches))
  ]
