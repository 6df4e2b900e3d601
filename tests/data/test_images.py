import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest

from aigc_jax.data import images
from aigc_jax.errors import DataError, UsageError


def save(path, **arrays):
  np.savez(path, **arrays)
  return f'npz:{path}'


@pytest.fixture
def numbered(tmp_path):
  """Images that tell their number by their pixels, in 3 classes."""
  train, test = np.arange(50, dtype=np.uint8), np.arange(100, 123, dtype=np.uint8)
  grow = lambda numbers: np.tile(numbers[:, None, None], (1, 2, 3))  # [images, height 2, width 3]
  return save(
    tmp_path / 'numbered.npz',
    train_images=grow(train),
    train_labels=train % 3,
    test_images=grow(test),
    test_labels=test % 3,
  )


def config(source, **changes):
  return {'source': source, 'batch_size': 8, 'seed': 3} | changes


def assert_equal(first, second):
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_array_equal(first[name], second[name])
    assert first[name].dtype == second[name].dtype


def test_facts_and_shapes_of_the_bundled_images():
  dataset = images.load({})
  assert dataset.tokenizer is None
  assert dataset.facts['size'] == '4,000 and 1,000 images of 28 x 28 x 1 in 10 classes'
  assert dataset.facts['split'] == "the source's own: 4,000 train, 1,000 of 'test' validate"
  assert dataset.facts['image_shape'] == [28, 28, 1]
  assert dataset.facts['steps_per_epoch'] == 31.25
  assert dataset.facts['class_names'][5] == 'Sandal'
  json.dumps(dataset.facts)
  example = dataset.example()
  assert {name: (array.shape, array.dtype) for name, array in example.items() if name != 'resident'} == {
    'rows': ((128,), np.int32),
    'mask': ((128,), np.float32),
  }
  resident = example['resident']
  assert (resident['images'].shape, resident['images'].dtype) == ((4000, 28, 28, 1), np.uint8)
  assert (resident['labels'].shape, resident['labels'].dtype) == ((4000,), np.int32)
  assert np.bincount(resident['labels']).tolist() == [400] * 10
  assert set(dataset.train_batch(0)) == {'rows', 'mask'}
  validation = list(dataset.validation_batches())
  assert len(validation) == dataset.validation_size == 8
  assert np.bincount(np.concatenate([b['labels'][b['mask'] > 0] for b in validation])).tolist() == [100] * 10


def test_few_images_of_each_class_are_the_first_of_them():
  whole, few = images.load({}), images.load({'images_per_class': 3})
  assert few.facts['train_images'] == 30
  assert few.facts['split'].endswith('; of these the first 3 of each class train')
  assert len(few.resident['images']) == 30
  for label in range(10):
    ours, theirs = (d.resident['images'][d.resident['labels'] == label] for d in (few, whole))
    np.testing.assert_array_equal(ours, theirs[:3])
  batches = zip(few.validation_batches(), whole.validation_batches(), strict=True)
  assert all((a['images'] == b['images']).all() for a, b in batches)


def test_a_batch_is_a_function_of_seed_and_step(numbered, monkeypatch):
  resident = images.load(config(numbered))
  monkeypatch.setattr(images, 'RESIDENT_BYTES', 299)  # a byte less than the training images take
  first, second = (images.load(config(numbered)) for _ in range(2))
  labels = first.resident['labels'].tolist()
  assert sorted(labels) == sorted(resident.resident['labels'].tolist()), 'all of a set that is so small'
  assert labels[:6] == [0, 1, 2, 0, 1, 2]
  forward = [first.train_batch(step) for step in range(40)]
  for step in (39, 0, np.int32(7)):
    assert_equal(second.train_batch(step), forward[step])
  assert_equal({n: array for n, array in first.example().items() if n != 'resident'}, forward[0])
  other = images.load(config(numbered, seed=4))
  assert any((other.train_batch(i)['images'] != forward[i]['images']).any() for i in range(3))
  for step in range(40):  # a resident set gives the same images
    rows = resident.train_batch(step)['rows']
    np.testing.assert_array_equal(resident.resident['images'][rows], forward[step]['images'])
    np.testing.assert_array_equal(resident.resident['labels'][rows], forward[step]['labels'])
  seen = np.concatenate([batch['images'][:, 0, 0, 0] for batch in forward[:25]]).reshape(4, 50)
  np.testing.assert_array_equal(np.sort(seen, axis=1), np.tile(np.arange(50), (4, 1)))
  for batch in forward:
    np.testing.assert_array_equal(batch['images'][:, 0, 0, 0] % 3, batch['labels'])
    assert batch['mask'].all()


def test_batches_are_the_same_in_another_process(numbered):
  code = (
    'import sys, json, hashlib; from aigc_jax.data import images; d = images.load(json.loads(sys.argv[1])); '
    'print(hashlib.sha256(b"".join(d.train_batch(s)["rows"].tobytes() for s in (12345, 0, 7))).hexdigest()); '
    'assert not {"jax", "PIL", "tensorflow_datasets"} & set(sys.modules)'
  )
  argument = json.dumps(config(numbered))
  there = subprocess.run([sys.executable, '-c', code, argument], capture_output=True, check=True, text=True)
  dataset = images.load(config(numbered))
  here = b''.join(dataset.train_batch(step)['rows'].tobytes() for step in (12345, 0, 7))
  assert there.stdout.strip() == hashlib.sha256(here).hexdigest()


def test_validation_is_every_image_once_in_order(numbered):
  for dataset in (images.load(config(numbered)), images.load_validation(config(numbered))):
    found = list(dataset.validation_batches())
    assert [batch['mask'].sum() for batch in found] == [8, 8, 7]
    assert all(batch['images'].shape == (8, 2, 3, 1) for batch in found)
    seen = np.concatenate([batch['images'][batch['mask'] > 0] for batch in found])
    assert seen[:, 0, 0, 0].tolist() == list(range(100, 123))
    assert dataset.facts['validation_images'] == 23
  with pytest.raises(ValueError, match='validation alone'):
    dataset.train_batch(0)
  assert dataset.facts['split'] == "the source's own 'test' validates"
  assert dataset.facts['size'] == '23 images of 2 x 3 x 1 in 3 classes'


def test_a_source_without_a_split_is_shuffled_and_split(tmp_path):
  numbers = np.arange(60, dtype=np.uint8)
  source = save(tmp_path / 'a.npz', images=np.tile(numbers[:, None, None], (1, 2, 2)), labels=numbers // 20)
  first, second = (images.load(config(source, validation_fraction=0.2, seed=seed)) for seed in (0, 1))
  train = set(first.resident['images'][:, 0, 0, 0].tolist())
  validation = {
    n for b in first.validation_batches() for n in b['images'][b['mask'] > 0][:, 0, 0, 0].tolist()
  }
  assert (len(train), len(validation)) == (48, 12)
  assert train | validation == set(numbers.tolist())
  assert (
    len(set(first.resident['labels'].tolist())) == 3
  )  # sorted by class as they lie, yet all classes train
  np.testing.assert_array_equal(first.resident['images'], second.resident['images'])
  assert first.facts['split'] == (
    'after one shuffle, the same for every data.seed, the first 48 of 60 images train, the rest validate'
  )
  whole = images.load_validation(config(source))
  assert whole.facts['validation_images'] == 60
  assert whole.facts['split'] == 'all of it validates'


def test_a_source_of_its_own_validates(numbered, tmp_path):
  other = save(tmp_path / 'b.npz', images=np.zeros((5, 2, 3), np.uint8), labels=np.array([2, 2, 1, 0, 1]))
  dataset = images.load(config(numbered, validation_source=other))
  (batch,) = dataset.validation_batches()
  assert batch['labels'][batch['mask'] > 0].tolist() == [2, 2, 1, 0, 1]
  assert (dataset.facts['train_images'], dataset.facts['validation_images']) == (50, 5)
  assert dataset.facts['validation_source'] == other
  assert dataset.facts['split'] == '50 train; validation has a source of its own with 5'
  whole = images.load(config(other, validation_source=numbered))  # all of a source without a split trains
  assert (whole.facts['train_images'], whole.facts['validation_images']) == (5, 23)


def test_labels_are_numbered_by_the_names_of_training(tmp_path):
  source = save(tmp_path / 'a.npz', images=np.zeros((3, 2, 2), np.uint8), labels=np.array([0, 2, 1]))
  dataset = images.load_validation(config(source), class_names=['2', 'cat', '1', '0'])
  assert next(dataset.validation_batches())['labels'][:3].tolist() == [3, 0, 2]
  assert dataset.facts['class_names'] == ['2', 'cat', '1', '0']
  with pytest.raises(DataError, match=r"a\.npz: class '2' is none of the training classes$"):
    images.load_validation(config(source), class_names=['0', '1'])


def test_other_sizes_in_validation(numbered, tmp_path):
  other = save(tmp_path / 'b.npz', images=np.zeros((5, 3, 2), np.uint8))
  with pytest.raises(
    DataError, match=r'b\.npz: images of 3 x 2 x 1, and those of npz:.*numbered.* 2 x 3 x 1$'
  ):
    images.load(config(numbered, validation_source=other))


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_binarization_draws_by_intensity(dtype, tmp_path):
  levels = np.array([0, 51, 128, 255])
  pixels = np.broadcast_to(levels[:, None], (300, 4, 100)).astype(dtype)  # [images, height, width]
  source = save(tmp_path / 'a.npz', train_images=pixels if dtype == np.uint8 else pixels / 255, test_images=(
    pixels if dtype == np.uint8 else pixels / 255)[:50])  # fmt: skip
  dataset = images.load(config(source, binarization='fixed'))
  drawn = dataset.resident['images']
  assert drawn.dtype == np.uint8
  assert set(np.unique(drawn)) == {0, 255}
  means = (drawn / 255).mean(axis=(0, 2, 3))
  assert (means[0], means[3]) == (0, 1)
  # 30,000 draws each: the standard error is below 0.003; five of them
  np.testing.assert_allclose(means, levels / 255, atol=0.015)
  # images are drawn apart: of 100 pixels half agree, standard deviation 0.05
  assert 0.3 < (drawn[0] == drawn[1])[2].mean() < 0.7
  again, other = (images.load(config(source, binarization='fixed', seed=seed)) for seed in (3, 4))
  np.testing.assert_array_equal(again.resident['images'], drawn)
  assert (other.resident['images'] != drawn).any()
  validation = [b['images'][b['mask'] > 0] for b in dataset.validation_batches()]
  assert (np.concatenate(validation)[:50] != drawn[:50]).any()  # a draw of its own


def test_validation_is_drawn_alike_whatever_the_mode_and_batch(numbered):
  def drawn(load, **changes):
    found = load(config(numbered, **changes)).validation_batches()
    return np.concatenate([batch['images'][batch['mask'] > 0] for batch in found])

  fixed = drawn(images.load, binarization='fixed')
  assert set(np.unique(fixed)) == {0, 255}
  np.testing.assert_array_equal(drawn(images.load, binarization='dynamic'), fixed)
  np.testing.assert_array_equal(drawn(images.load, binarization='dynamic', batch_size=5), fixed)
  np.testing.assert_array_equal(drawn(images.load_validation, binarization='fixed', batch_size=23), fixed)
  plain, dynamic = (images.load(config(numbered, binarization=mode)) for mode in (None, 'dynamic'))
  np.testing.assert_array_equal(
    dynamic.resident['images'], plain.resident['images']
  )  # drawn later, in the step


def test_draws_do_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch):
  pixels = np.full((100, 3, 3, 1), 128, np.uint8)
  whole = images.binarized(pixels, 0, 'train')
  monkeypatch.setattr(images, 'DRAWN_ROWS', 7)
  np.testing.assert_array_equal(images.binarized(pixels, 0, 'train'), whole)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'sourc': 'x'}, r"config\.data\.sourc: no such key; did you mean 'data\.source'"),
    ({'binarization': 'sometimes'}, r'config\.data\.binarization: .*fixed, dynamic'),
    ({'batch_size': 0}, 'out of range'),
    ({'source': 'bundled:mnist'}, 'there are fashion_mnist_5k'),
    (
      {'source': 'text:a'},
      r'the kinds are bundled:fashion_mnist_5k, idx:FOLDER, npz:PATH, images:FOLDER, tfds:',
    ),
    ({'source': 'npz:'}, 'is not of the form kind:place'),
  ],
)
def test_wrong_configs(changes, message):
  with pytest.raises(UsageError, match=message) as caught:
    images.load(changes)
  assert '\n' not in str(caught.value)
