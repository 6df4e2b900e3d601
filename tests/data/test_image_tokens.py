"""Images as tokens: the tokenizer is an autoencoder whole, and a row is a class and the codes."""

import jax
import numpy as np
import pytest

from aigc_jax import data, models
from aigc_jax.data import image_codes, images, tokenizers
from aigc_jax.errors import DataError
from tests import tiny_images

CODES, GRID = 8, (4, 4)
NAMES = ('0', '1', '2')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  return tiny_images.write_images(tmp_path_factory.mktemp('images') / 'images.npz')


@pytest.fixture(scope='module')
def autoencoder(source):
  """(module, its parameters, codebook): new, and of these images."""
  model = tiny_images.MODELS['vq'] | {'image_shape': [8, 8, 1]}
  module, pixels = models.build(model), pixels_of(source)
  params = module.init(jax.random.key(0), pixels[:1])['params']
  vectors = module.apply({'params': params}, pixels, method='encode').reshape(-1, 4)
  codebook = np.asarray(jax.random.choice(jax.random.key(1), vectors, (CODES,), replace=False))
  return module, params, codebook


@pytest.fixture(scope='module')
def tokenizer(autoencoder, source, tmp_path_factory):
  """Made, saved, and read back."""
  _, params, codebook = autoencoder
  model = tiny_images.MODELS['vq'] | {'image_shape': [8, 8, 1], 'likelihood': 'bernoulli'}
  made = image_codes.make_tokenizer(
    {'model': model, 'data': {'source': source, 'batch_size': 8}}, NAMES, params, codebook
  )
  path = tmp_path_factory.mktemp('tokenizer') / 'tokenizer.json'
  made.save(path)
  found = tokenizers.load(path)
  assert found.sha256 == made.sha256
  return found


def arrays_of(source, part='train'):
  with np.load(source.removeprefix('npz:')) as arrays:
    return arrays[f'{part}_images'][..., None], arrays[f'{part}_labels']


def pixels_of(source, part='train'):
  return arrays_of(source, part)[0].astype(np.float32) / 255


def test_codes_and_images_are_those_of_the_autoencoder(autoencoder, tokenizer, source, monkeypatch):
  module, params, codebook = autoencoder
  bytes_, floats = arrays_of(source)[0], pixels_of(source)
  expected = module.apply({'params': params}, floats, codebook, method='codes')
  assert len(np.unique(expected)) > 2
  logits, _ = module.apply({'params': params}, expected, codebook, method='from_codes')
  expected = np.asarray(expected).reshape(len(floats), -1)
  assert tokenizer.grid == GRID
  monkeypatch.setattr(image_codes, 'ROWS', 16)  # 40 images take three turns, the last one padded
  for pixels in (bytes_, floats):
    found = tokenizer.encode_images(pixels)
    np.testing.assert_array_equal(found, expected)
    assert (found.shape, found.dtype) == ((40, 16), np.int32)
  images = tokenizer.decode_images(expected)
  # the same program for other numbers of rows, which may add in another order
  np.testing.assert_allclose(images, 1 / (1 + np.exp(-np.asarray(logits))), atol=1e-6)


def test_what_was_saved_decides_the_hash(autoencoder, tokenizer):
  _, params, codebook = autoencoder
  other = codebook.copy()
  other[0, 0] = np.nextafter(other[0, 0], 9)
  saved = tokenizer.saved
  again = image_codes.make_tokenizer(saved, saved['class_names'], params, codebook)
  assert again.sha256 == tokenizer.sha256
  assert image_codes.make_tokenizer(saved, saved['class_names'], params, other).sha256 != tokenizer.sha256


def test_a_row_is_the_class_and_then_the_codes(tokenizer, source):
  dataset = data.load({'source': 'run:vq', 'batch_size': 10, 'seed': 1}, tokenizer, 'image_tokens')
  images, labels = arrays_of(source)
  known = {row.tobytes(): label for row, label in zip(tokenizer.encode_images(images), labels, strict=True)}
  rows = [dataset.train_batch(step) for step in range(4)]
  for batch in rows:
    np.testing.assert_array_equal(batch['inputs'][:, 1:], batch['targets'][:, :-1])
    assert [known[row.tobytes()] for row in batch['targets']] == (batch['inputs'][:, 0] - CODES).tolist()
    assert batch['mask'].shape == batch['targets'].shape == (10, 16)
    assert batch['mask'].all()
  epoch = np.concatenate([batch['inputs'][:, 0] for batch in rows]) - CODES
  assert np.bincount(epoch).tolist() == np.bincount(labels).tolist(), (
    'four batches of ten are an epoch of forty'
  )
  np.testing.assert_array_equal(rows[2]['targets'], dataset.train_batch(2)['targets'])
  assert (rows[0]['targets'] != rows[1]['targets']).any()
  facts = dataset.facts
  assert (facts['vocabulary_size'], facts['sequence_length'], facts['steps_per_epoch']) == (CODES + 3, 16, 4)
  assert facts['tokenizer_sha256'] == tokenizer.sha256


def check_validation(dataset, tokenizer, images, labels):
  batches = list(dataset.validation_batches())
  assert len(batches) == dataset.validation_size == 2
  masks = np.concatenate([batch['mask'] for batch in batches])
  assert masks.shape == (16, 16)
  np.testing.assert_array_equal(masks.all(1), np.arange(16) < 11)
  np.testing.assert_array_equal(masks.any(1), np.arange(16) < 11)
  inputs, targets = (np.concatenate([b[name] for b in batches])[:11] for name in ('inputs', 'targets'))
  np.testing.assert_array_equal(targets, tokenizer.encode_images(images))
  np.testing.assert_array_equal(inputs[:, 0], CODES + labels)


def test_validation_is_every_image_once_and_padding_counts_nothing(tokenizer, source):
  dataset = data.load({'source': 'run:vq', 'batch_size': 8}, tokenizer, 'image_tokens')
  check_validation(dataset, tokenizer, *arrays_of(source, 'test'))


@pytest.mark.parametrize('how', ['fixed', 'dynamic'])
def test_tokens_are_of_binary_images_where_the_autoencoder_saw_such(tokenizer, source, how):
  seen = tokenizer.saved['data'] | {'binarization': how}
  binary = image_codes.ImageTokenizer(tokenizer.saved | {'data': seen})
  dataset = data.load({'source': 'run:vq', 'batch_size': 8}, binary, 'image_tokens')
  drawn = lambda part, name: images.binarized(arrays_of(source, part)[0], 0, name)
  rows = np.concatenate([dataset.train_batch(step)['targets'] for step in range(5)])
  expected = binary.encode_images(drawn('train', 'train'))
  assert sorted(rows.tolist()) == sorted(expected.tolist())
  check_validation(dataset, binary, drawn('test', 'validation'), arrays_of(source, 'test')[1])


def test_validation_on_other_images(tokenizer, tmp_path):
  other = tiny_images.write_images(tmp_path / 'other.npz', seed=5)
  dataset = data.load_validation({'source': other, 'batch_size': 8}, tokenizer, None, 'image_tokens')
  check_validation(dataset, tokenizer, *arrays_of(other, 'test'))
  with pytest.raises(ValueError, match='validation alone'):
    dataset.train_batch(0)


def test_other_images_of_another_size_are_refused(tokenizer, tmp_path):
  np.savez(tmp_path / 'wide.npz', images=np.zeros((4, 8, 12), np.uint8))
  with pytest.raises(
    DataError, match=r'wide.npz: images of 8 x 12 x 1, and the model was trained on 8 x 8 x 1'
  ):
    data.load_validation({'source': f'npz:{tmp_path}/wide.npz'}, tokenizer, None, 'image_tokens')
