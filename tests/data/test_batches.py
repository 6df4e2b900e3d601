import numpy as np
import pytest

from aigc_jax.data import batches
from aigc_jax.errors import DataError


@pytest.mark.parametrize(('count', 'batch_size'), [(10, 3), (7, 7), (3, 8), (1, 2)])
def test_each_epoch_is_a_permutation_of_its_own(count, batch_size):
  rows = batches.shuffled_rows(count, batch_size, seed=5)
  steps, numbers = zip(*(rows(step) for step in range(count * 4)), strict=True)  # whole epochs
  assert all(chosen.shape == (batch_size,) and chosen.dtype == np.int32 for chosen in steps)
  epochs = np.concatenate(steps).reshape(-1, count)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(count), (len(epochs), 1)))
  np.testing.assert_array_equal(np.concatenate(numbers), np.repeat(np.arange(len(epochs)), count))
  if count > 6:
    assert len({tuple(epoch) for epoch in epochs[:4].tolist()}) == 4  # by chance alike: less than 1 in 800


def test_rows_are_a_function_of_seed_and_step():
  first, again, other = (batches.shuffled_rows(50, 8, seed) for seed in (-1, -1, 0))
  forward = [first(step)[0] for step in range(30)]
  for step in (29, 0, 13, np.int32(7)):
    np.testing.assert_array_equal(again(step)[0], forward[step])
  assert any((other(step)[0] != forward[step]).any() for step in range(3))


def test_padded_batches_give_every_row_once():
  arrays = {
    'images': np.arange(1, 23, dtype=np.uint8).reshape(11, 2),
    'labels': np.arange(11, dtype=np.int32),
  }
  found = list(batches.padded_batches(arrays, 4))
  assert len(found) == 3
  for batch in found:
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == {
      'images': ((4, 2), np.uint8),
      'labels': ((4,), np.int32),
      'mask': ((4,), np.float32),
    }
  assert found[-1]['mask'].tolist() == [1, 1, 1, 0]
  assert not found[-1]['images'][3].any()
  for name, array in arrays.items():
    kept = np.concatenate([batch[name][batch['mask'] > 0] for batch in found])
    np.testing.assert_array_equal(kept, array)


@pytest.mark.parametrize(
  ('count', 'fraction', 'place'), [(100, 0.1, 90), (2, 0.01, 1), (2, 0.99, 1), (7, 0.5, 4)]
)
def test_a_split_is_in_two_and_mixed(count, fraction, place):
  train, validation, sentence = batches.split_rows('x', count, fraction, 'images')
  assert len(train) == place
  assert sorted([*train, *validation]) == list(range(count))
  assert f'the first {place} of {count} images train' in sentence
  if count == 100:
    assert validation.tolist() != list(range(90, 100))
    np.testing.assert_array_equal(batches.split_rows('y', count, fraction, 'texts')[0], train)


def test_one_example_cannot_be_split():
  with pytest.raises(DataError, match=r'^npz:a\.npz: 1 images cannot be split; give two or more'):
    batches.split_rows('npz:a.npz', 1, 0.1, 'images')
