"""Masked images: what is hidden is not seen, is all that counts, and is given back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import api
from aigc_jax.data import images
from aigc_jax.errors import UsageError
from aigc_jax.task import Context
from aigc_jax.training import prepare
from tests import tiny_images

CONTEXT = Context(jax.random.key(1), jnp.int32(0), True)
MODELS = {
  'cnn': {'name': 'cnn', 'channels': [4, 6]},
  'vision_transformer': {'name': 'vision_transformer', 'layers': 1, 'heads': 2, 'width': 8, 'patch_size': 4},
}


def config(folder, model='cnn', **sections):
  source = tiny_images.write_images(folder / 'images.npz')
  made = tiny_images.config(source, 'mlp', **sections)
  task = {'name': 'masked_images', 'crop_size': 2, 'hidden_units': 8, 'channels': (4,), 'labels_per_class': 2}
  return made | {'task': task | sections.get('task', {}), 'model': MODELS.get(model, {'name': model})}


@pytest.fixture(params=MODELS)
def begun(request, tmp_path):
  """(Task, params, extra, what `collect` made of a batch)."""
  made = config(tmp_path, request.param, task={'flip': False, 'hidden': 0.5})
  experiment = prepare.prepare(api.read_config(made))
  params, extra = experiment.task.init(jax.random.key(0), experiment.dataset.example())
  extra, batch = experiment.task.collect(params, extra, experiment.dataset.example(), CONTEXT)
  return experiment.task, params, extra, batch


def test_whole_crops_are_hidden(begun):
  *_, batch = begun
  hidden = np.asarray(batch['hidden'])
  assert hidden.shape == (8, 8, 8)
  blocks = hidden.reshape(8, 4, 2, 4, 2).transpose(0, 1, 3, 2, 4).reshape(-1, 4)
  assert (blocks == blocks[:, :1]).all()
  assert 0.3 < hidden.mean() < 0.7
  assert len(np.unique(hidden.reshape(8, -1), axis=0)) == 8, 'each image has its own'


def test_what_is_hidden_is_not_seen_and_is_what_counts(begun):
  task, params, extra, batch = begun
  hidden = np.asarray(batch['hidden'])[..., None] > 0
  images = np.asarray(batch['images'])
  given = lambda images: task.loss(params, extra, batch | {'images': images}, CONTEXT)
  slopes = lambda images: jax.grad(lambda x: given(x)[0])(images / np.float32(255))
  total, (weight, _, _) = given(images)
  assert float(weight) == hidden.sum()
  assert 0 < float(total) / float(weight) < 1
  # a slope by a hidden pixel is that of its own error alone, 2 (found - pixel): the network has none
  found = np.asarray(images / np.float32(255) - slopes(images) / 2)
  other = np.where(hidden, 255 - images, images)
  again = np.asarray(other / np.float32(255) - slopes(other) / 2)
  np.testing.assert_allclose(found[hidden], again[hidden], atol=1e-5)
  seen = np.where(hidden, images, 255 - images)
  assert float(given(seen)[0]) != float(total)


def test_padding_counts_for_nothing(begun):
  task, params, extra, batch = begun
  mask = jnp.ones(8).at[3].set(0)
  first = task.loss(params, extra, batch | {'mask': mask}, CONTEXT)
  images = batch['images'].at[3].set(0)
  again = task.loss(params, extra, batch | {'mask': mask, 'images': images}, CONTEXT)
  np.testing.assert_allclose(first[0], again[0], rtol=1e-6)
  assert float(first[1][0]) == float((batch['hidden'] * mask[:, None, None]).sum())


def test_labelled_images_of_a_set_too_large_for_the_device_are_the_first_of_each_class(tmp_path, monkeypatch):
  """As of one that lies there: five of each of three classes are more than a batch of eight has."""
  found = []
  for most in (images.RESIDENT_BYTES, 0):
    monkeypatch.setattr(images, 'RESIDENT_BYTES', most)
    experiment = prepare.prepare(api.read_config(config(tmp_path, task={'labels_per_class': 5})))
    batch = experiment.dataset.example()
    params, extra = experiment.task.init(jax.random.key(0), batch)
    _, drawn = experiment.task.collect(params, extra, batch, CONTEXT)
    found.append((extra['labelled'], drawn))
  jax.tree.map(np.testing.assert_array_equal, *found)
  assert np.bincount(found[1][0]['labels']).tolist() == [5, 5, 5]


def test_nothing_hidden_is_a_batch_of_no_weight(begun):
  task, params, extra, batch = begun
  total, (weight, _, _) = task.loss(params, extra, batch | {'hidden': 0 * batch['hidden']}, CONTEXT)
  assert float(total) == float(weight) == 0


def test_hidden_stripes_are_learned_and_shown_and_a_classifier_begins_with_them(tmp_path):
  """The loss falls well below the variance of pixels; the classifier has their convolutions and a head of its own."""
  sections = {'training': {'steps': 150, 'evaluate_every': 150}, 'data': {'batch_size': 24}}
  task = {'flip': False, 'hidden': 0.3, 'hidden_units': 32, 'channels': (16,)}
  run = api.train(config(tmp_path, task=task, **sections), tmp_path / 'run', quiet=True)
  found = run.evaluate()
  assert found['loss'] < 0.03, 'a mean of all would leave 0.06'
  assert found['probe_accuracy'] > 0.9
  assert (tmp_path / 'run/samples/00000150-reconstructions.png').exists()
  assert (tmp_path / 'run/samples/00000150-embeddings.png').exists()
  classifier = config(tmp_path, training={'steps': 1}) | {'task': {'name': 'classification'}}
  learned = api.train(classifier | {'init_from': str(tmp_path / 'run')}, tmp_path / 'learned', quiet=True)
  before, after = run.params['convolution_0']['kernel'], learned.params['convolution_0']['kernel']
  assert np.abs(np.asarray(after) - np.asarray(before)).max() < 0.02, 'one step away'
  images = np.zeros((5, 8, 8, 1), np.uint8)
  assert run.features(images).shape == learned.features(images).shape == (5, 24)
  with pytest.raises(UsageError, match=r'images of shape \[5, 8, 8\]; .* takes \[images, 8, 8, 1\]'):
    run.features(images[..., 0])
  assert 'pixel_head' not in learned.params
  assert 'head' in learned.params


@pytest.mark.parametrize(
  ('sections', 'message'),
  [
    ({'crop_size': 9}, 'crop_size: 9 pixels are more than the images have; use 8 or less'),
    ({'channels': ()}, 'channels: is empty'),
    ({'hidden': 1.5}, r'task.hidden'),
    ({'hidden': 0.0}, r'task.hidden: .* above 0, up to 1'),
  ],
)
def test_what_does_not_fit_is_refused(tmp_path, sections, message):
  with pytest.raises(UsageError, match=message):
    api.train(config(tmp_path, task=sections), workdir=tmp_path / 'run', quiet=True)
  assert not (tmp_path / 'run').exists()


def test_patches_that_do_not_divide_an_image_are_refused(tmp_path):
  given = config(tmp_path, 'vision_transformer')
  given['model'] = given['model'] | {'patch_size': 3}
  with pytest.raises(UsageError, match='patch_size: 3 does not divide images of 8 x 8; use 1, 2, 4, 8'):
    api.train(given, workdir=tmp_path / 'run', quiet=True)
