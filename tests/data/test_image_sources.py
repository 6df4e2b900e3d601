import gzip
import re
import struct

import numpy as np
import pytest

from aigc_jax.data import image_arrays, sources
from aigc_jax.data.image_sources import open_images
from aigc_jax.errors import DataError

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (6, 4, 5), np.uint8), np.array([0, 1, 2, 3, 1, 0], np.uint8)
TEST = RNG.integers(0, 256, (3, 4, 5), np.uint8), np.array([3, 0, 1], np.uint8)


def idx(array):
  return struct.pack(f'>HBB{array.ndim}I', 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder, **changes):
  contents = {
    'train-images-idx3-ubyte': idx(TRAIN[0]),
    'train-labels-idx1-ubyte': idx(TRAIN[1]),
    't10k-images-idx3-ubyte': idx(TEST[0]),
    't10k-labels-idx1-ubyte': idx(TEST[1]),
  }
  for name, content in contents.items():
    (folder / name).write_bytes(
      changes.get(name.rpartition('-')[0].rpartition('-')[0].replace('-', '_'), content)
    )
  return f'idx:{folder}'


def message_of(name):
  with pytest.raises(DataError) as caught:
    open_images(name)
  assert '\n' not in str(caught.value)
  return str(caught.value)


def test_hashes_are_those_of_the_table(monkeypatch):
  table = (sources.BUNDLED_FOLDER / 'SOURCES.md').read_text(encoding='utf-8')
  for file_name, sha256 in image_arrays.BUNDLED.values():
    assert re.search(rf'`{re.escape(file_name)}`.*`{sha256}`', table)
  monkeypatch.setitem(image_arrays.BUNDLED, 'fashion_mnist_5k', ('fashion_mnist_5k.npz', '0' * 64))
  assert 'sha256 is 97e87e70a842' in message_of('bundled:fashion_mnist_5k')


@pytest.mark.parametrize('form', ['plain', 'gzip', 'dots'])
def test_idx(form, tmp_path):
  name = write_idx(tmp_path)
  plain = open_images(name).sha256
  for path in list(tmp_path.iterdir()):
    if form == 'gzip':
      path.with_name(f'{path.name}.gz').write_bytes(gzip.compress(path.read_bytes()))
      path.unlink()
    elif form == 'dots':
      path.rename(path.with_name(path.name.replace('-idx', '.idx')))
  source = open_images(name)
  np.testing.assert_array_equal(source.parts['train'].images, TRAIN[0][..., None])
  np.testing.assert_array_equal(source.parts['test'].images, TEST[0][..., None])
  assert source.parts['train'].labels.tolist() == TRAIN[1].tolist()
  assert source.parts['test'].labels.dtype == np.int32
  assert source.class_names == ('0', '1', '2', '3')
  assert (source.sha256 == plain) == (form == 'plain')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'train_images': idx(TRAIN[0])[:-3]},
      'train-images-idx3-ubyte: cut short: 117 bytes .* tells of 6 x 4 x 5',
    ),
    ({'train_images': idx(TRAIN[0])[:9]}, 'train-images-idx3-ubyte: cut short: 9 bytes, less than the 16 '),
    ({'train_images': idx(TRAIN[0]) + b'x'}, 'train-images-idx3-ubyte: too long: 121 bytes'),
    ({'train_images': b''}, 'train-images-idx3-ubyte is empty'),
    ({'test_images': b''}, None),
    (
      {'t10k_images': idx(TEST[1]) + bytes(9)},
      't10k-images-idx3-ubyte: magic number 2049, not 2051 .*images',
    ),
    ({'t10k_labels': idx(TEST[0])}, 't10k-labels-idx1-ubyte: magic number 2051, not 2049 .*labels'),
    ({'t10k_labels': idx(TRAIN[1])}, r'labels-idx1-ubyte: 6 labels, and t10k-images-idx3-ubyte has 3 images'),
    ({'t10k_images': idx(TEST[0][:, 1:])}, 'train and of test differ in size: 3 x 5 x 1 and 4 x 5 x 1'),
    ({'t10k_images': idx(TEST[0][:0]), 't10k_labels': idx(TEST[1][:0])}, "the part 'test' holds no image"),
    ({'t10k_labels': idx(np.array([0, 1, 200], np.uint8))}, None),  # a class that does not train is one
  ],
)
def test_broken_idx(changes, message, tmp_path):
  name = write_idx(tmp_path, **changes)
  if message is None:
    open_images(name)
  else:
    assert re.search(message, message_of(name))


def test_missing_and_unpackable_idx(tmp_path):
  name = write_idx(tmp_path)
  assert 'is a file; idx takes the folder' in message_of(f'{name}/train-images-idx3-ubyte')
  (tmp_path / 't10k-labels-idx1-ubyte').rename(tmp_path / 't10k-labels-idx1-ubyte.gz')
  assert 't10k-labels-idx1-ubyte.gz: not a whole gzip file' in message_of(name)
  packed = gzip.compress(idx(TEST[1]))
  (tmp_path / 't10k-labels-idx1-ubyte.gz').write_bytes(packed[:-5])
  assert 't10k-labels-idx1-ubyte.gz: not a whole gzip file' in message_of(name)
  (tmp_path / 't10k-labels-idx1-ubyte.gz').unlink()
  assert 'has no t10k-labels-idx1-ubyte, nor one with .gz' in message_of(name)
  assert "no 'there-is-none'" in message_of('idx:there-is-none')


def saved(tmp_path, **arrays):
  np.savez(tmp_path / 'a.npz', **arrays)
  return f'npz:{tmp_path}/a.npz'


def test_npz(tmp_path):
  colour = RNG.random((5, 3, 2, 3))
  part = open_images(saved(tmp_path, images=colour)).parts['all']
  np.testing.assert_array_equal(part.images, colour.astype(np.float32))
  assert part.labels.tolist() == [0] * 5
  arrays = {'train_images': TRAIN[0], 'train_labels': TRAIN[1].astype(np.int64), 'test_images': TEST[0]}
  source = open_images(saved(tmp_path, **arrays, test_labels=TEST[1], notes=np.array(['x'])))
  np.testing.assert_array_equal(source.parts['test'].images, TEST[0][..., None])
  assert source.parts['train'].images.dtype == np.uint8
  assert source.parts['train'].labels.dtype == np.int32
  assert source.class_names == ('0', '1', '2', '3')
  np.savez_compressed(tmp_path / 'a.npz', images=TEST[0])
  assert open_images(f'npz:{tmp_path}/a.npz').class_names == ('0',)


FLAT = np.zeros((4, 2, 2))


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'pictures': FLAT}, r'its arrays are pictures; npz takes train_images and test_images'),
    ({'train_images': FLAT}, r'npz takes train_images and test_images'),
    (
      {'train_images': FLAT, 'test_images': FLAT, 'test_labels': np.zeros(4, int)},
      'only one of train_labels',
    ),
    ({'images': FLAT[0]}, r'images has shape \[2, 2\], not \[images, height, width\]'),
    ({'images': np.zeros((4, 2, 2, 4))}, r'images has shape \[4, 2, 2, 4\]'),
    ({'images': FLAT + 1.5}, r'images has values from 1\.5 to 1\.5; floats are in \[0, 1\]'),
    ({'images': FLAT - 0.25}, r'values from -0\.25 to'),
    ({'images': FLAT + np.nan}, r'values from nan to nan'),
    ({'images': FLAT.astype(np.int64)}, r'images holds int64, not uint8 or floats'),
    ({'images': FLAT[:0]}, r"the part 'all' holds no image"),
    ({'images': FLAT, 'labels': np.zeros(3, int)}, r'labels has shape \[3\], and there are 4 images'),
    ({'images': FLAT, 'labels': np.zeros((4, 1), int)}, r'labels has shape \[4, 1\]'),
    (
      {'images': FLAT, 'labels': np.array([0, 1, -2, 1])},
      r'labels has values from -2 to 1; number classes from 0',
    ),
    ({'images': FLAT, 'labels': np.zeros(4)}, r'labels holds float64, not integers'),
    ({'images': FLAT, 'labels': np.full(4, 10**6)}, r'a label is 1,000,000; number the classes from 0'),
    ({'images': np.array([None] * 4)}, r'not an \.npz file of plain arrays: Object arrays cannot be loaded'),
  ],
)
def test_bad_arrays(arrays, message, tmp_path):
  found = message_of(saved(tmp_path, **arrays))
  assert 'a.npz: ' in found
  assert re.search(message, found)


def test_broken_npz(tmp_path):
  name = saved(tmp_path, images=RNG.integers(0, 256, (40, 8, 8), np.uint8))
  whole = (tmp_path / 'a.npz').read_bytes()
  for content in (whole[:-30], whole[:2000], whole[:200] + b'\xff' * 50 + whole[250:]):
    (tmp_path / 'a.npz').write_bytes(content)
    assert f'{tmp_path}/a.npz: not a' in message_of(name)
  np.save(tmp_path / 'b.npy', TEST[0])
  assert 'not an .npz file' in message_of(f'npz:{tmp_path}/b.npy')
  (tmp_path / 'a.npz').write_bytes(b'')
  assert 'is empty' in message_of(name)
  assert 'is a folder; npz takes one file' in message_of(f'npz:{tmp_path}')
  assert "no 'c.npz'" in message_of(f'npz:{tmp_path}/c.npz')
