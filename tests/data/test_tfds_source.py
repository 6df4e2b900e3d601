"""Through TensorFlow Datasets, without TensorFlow: it is not installed where these tests run."""

import importlib.util
import io

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from aigc_jax.data import images
from aigc_jax.data.image_sources import open_images
from aigc_jax.errors import DataError, UsageError

FEATURES = {
  'label': tfds.features.ClassLabel(names=['ant', 'cat']),
  'image': tfds.features.Image(shape=(4, 4, 1)),
  'drawing': tfds.features.Tensor(shape=(None, 4), dtype=np.uint8),
  'fraction': tfds.features.Tensor(shape=(2, 2), dtype=np.float32),
}


def png(number):
  """A picture as bytes: to encode an array takes TensorFlow."""
  stream = io.BytesIO()
  Image.fromarray(np.full((4, 4), number, np.uint8)).save(stream, 'PNG')
  return io.BytesIO(stream.getvalue())


def prepare(folder, name, splits, features, file_format='array_record'):
  """Writes a data set of `splits` {split: examples} as TFDS keeps it."""

  class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
      )

    def _split_generators(self, download_manager):
      return {split: self._generate_examples(examples) for split, examples in splits.items()}

    def _generate_examples(self, examples):
      yield from enumerate(examples)

  Builder.name = name
  builder = Builder(data_dir=str(folder), file_format=file_format)
  builder.download_and_prepare()
  return builder


def pictures(labels):
  return [{'image': png(10 * i), 'label': label} for i, label in enumerate(labels)]


def message_of(name, folder, error=DataError):
  with pytest.raises(error) as caught:
    open_images(name, str(folder))
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_our_builder_goes_round(tmp_path, capfd):
  config = {'source': 'tfds:fashion_mnist_5k', 'data_dir': str(tmp_path)}
  prepared, found = images.load(config), images.load(config | {'source': 'tfds:fashion_mnist_5k:1.0.0'})
  assert capfd.readouterr() == ('', '')  # TFDS would have its say on both
  bundled = images.load({})
  for dataset in (prepared, found):
    for name, array in bundled.resident.items():
      np.testing.assert_array_equal(dataset.resident[name], array)
    for first, second in zip(dataset.validation_batches(), bundled.validation_batches(), strict=True):
      np.testing.assert_array_equal(first['images'], second['images'])
    same = {'class_names', 'image_shape', 'split', 'size'}
    assert {n: dataset.facts[n] for n in same} == {n: bundled.facts[n] for n in same}
  assert prepared.facts['sha256'] == found.facts['sha256']
  other = images.load(config | {'data_dir': str(tmp_path / 'other')})
  assert other.facts['sha256'] == prepared.facts['sha256']  # though the files differ
  assert (tmp_path / 'fashion_mnist_5k' / '1.0.0').is_dir()
  assert 'cannot be loaded at version 2.0.0' in message_of('tfds:fashion_mnist_5k:2.0.0', tmp_path)


def test_what_others_prepared_is_read(tmp_path):
  features = {name: FEATURES[name] for name in ('image', 'label')}
  splits = {'train': pictures([0, 1, 1]), 'test': pictures([1, 0]), 'validation': pictures([1])}
  prepare(tmp_path, 'zoo', splits, features)
  source = open_images('tfds:zoo', str(tmp_path))
  assert source.class_names == ('ant', 'cat')
  assert list(source.parts) == ['train', 'validation']
  np.testing.assert_array_equal(source.parts['train'].images[:, 2, 1, 0], [0, 10, 20])
  assert source.parts['train'].images.dtype == np.uint8
  assert source.parts['train'].labels.tolist() == [0, 1, 1]


def test_one_split_and_no_labels(tmp_path):
  shades = [{'image': np.full((2, 2), i / 4, np.float32)} for i in range(5)]
  prepare(tmp_path, 'shades', {'train': shades}, {'image': FEATURES['fraction']})
  source = open_images('tfds:shades', str(tmp_path))
  assert list(source.parts) == ['all']
  np.testing.assert_array_equal(source.parts['all'].images[:, 0, 0, 0], np.arange(5) / 4)
  assert source.class_names == ('0',)


def test_what_takes_tensorflow_says_so(tmp_path):
  assert importlib.util.find_spec('tensorflow') is None
  message = message_of('tfds:mnist', tmp_path)
  assert message.startswith(f'tfds:mnist: not prepared in {tmp_path}, and to prepare mnist takes TensorFlow')
  assert 'install aigc-jax[tf], or set data.data_dir' in message
  assert "did you mean 'mnist'?" in message_of('tfds:mnst', tmp_path, UsageError)
  assert f'no such data set in {tmp_path}' in message_of('tfds:zzzzzzz', tmp_path, UsageError)


def test_other_data_than_images(tmp_path):
  image, label = FEATURES['image'], FEATURES['label']
  prepare(tmp_path, 'names', {'train': [{'label': 1}]}, {'label': label})
  assert message_of('tfds:names', tmp_path) == "tfds:names: its features are label; 'image' is needed"
  splits = {'train': pictures([0]), 'extra': pictures([1])}
  prepare(tmp_path, 'extras', splits, {'image': image, 'label': label})
  assert 'its splits are ' in message_of('tfds:extras', tmp_path)
  prepare(
    tmp_path, 'hidden', {'train': pictures([0]), 'test': pictures([-1])}, {'image': image, 'label': label}
  )
  assert "split 'test': label has values from -1 to -1" in message_of('tfds:hidden', tmp_path)
  mixed = [{'image': np.zeros((rows, 4), np.uint8)} for rows in (4, 5)]
  prepare(tmp_path, 'mixed', {'train': mixed}, {'image': FEATURES['drawing']})
  assert 'images of [4, 4] and of [5, 4]; all must have one shape' in message_of('tfds:mixed', tmp_path)


def test_damaged_files(tmp_path):
  builder = prepare(
    tmp_path, 'zoo', {'train': pictures([0, 1])}, {n: FEATURES[n] for n in ('image', 'label')}
  )
  (path,) = (tmp_path / 'zoo' / '1.0.0').glob('*array_record*')
  path.write_bytes(path.read_bytes()[:1000])
  assert "tfds:zoo, split 'train': cannot be read: " in message_of('tfds:zoo', tmp_path)
  del builder
  (tmp_path / 'zoo' / '1.0.0' / 'dataset_info.json').write_text('{', encoding='utf-8')
  assert 'tfds:zoo: TFDS cannot open it in ' in message_of('tfds:zoo', tmp_path)
