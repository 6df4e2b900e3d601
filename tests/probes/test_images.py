"""Probes of models of images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from aigc_jax.errors import UsageError
from tests import tiny, tiny_images
from tests.tasks import test_q_learning


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """{name: a trained run} of the models of images."""
  folder = tmp_path_factory.mktemp('runs')
  source = tiny_images.write_images(folder / 'images.npz')
  vision = tiny_images.MODELS['masked_images'] | {'layers': 2}
  plain = tiny_images.MODELS['vae'] | {'posterior': 'none', 'likelihood': 'squared_error'}
  made = {
    'mlp': tiny_images.config(source, 'mlp'),
    'resnet': tiny_images.config(source, 'resnet'),
    'vision': tiny_images.config(source, 'mlp') | {'model': vision},
    'vae': tiny_images.config(source, 'vae'),
    'conditional': tiny_images.config(source, 'conditional'),
    'plain': tiny_images.config(source, 'vae') | {'model': plain},
    'vq': tiny_images.config(source, 'vq'),
    'contrastive': tiny_images.config(source, 'contrastive'),
  }
  with tiny.compile_cache(folder / 'programs'):
    yield {name: tiny.train(config, folder / name) for name, config in made.items()}


def test_saliency_of_pixels_is_the_gradient_of_torch(runs):
  found, params = runs['mlp'].probe('saliency').arrays, runs['mlp'].params
  layers = [torch.nn.Linear(*np.shape(params[name]['kernel'])) for name in ('hidden_0', 'head')]
  for layer, name in zip(layers, ('hidden_0', 'head'), strict=True):
    layer.weight.data = torch.tensor(np.array(params[name]['kernel']).T)
    layer.bias.data = torch.tensor(np.array(params[name]['bias']))
  pixels = torch.tensor(found['images'].reshape(8, -1), requires_grad=True)
  nats = layers[1](torch.relu(layers[0](pixels))).log_softmax(-1)
  nats.max(-1).values.sum().backward()
  theirs = pixels.grad.numpy().reshape(found['gradients'].shape)
  assert np.allclose(found['gradients'], np.abs(theirs), atol=1e-6)
  assert found['smooth_gradients'].shape == found['gradients'].shape
  assert found['smooth_gradients'].std() > 0


def test_running_statistics_are_those_of_the_run(runs):
  """A network with batch normalization is seen as evaluations see it, one image or eight."""
  eight, one = (runs['resnet'].probe('saliency', **which).arrays for which in ({}, {'row': 2}))
  assert np.allclose(eight['gradients'][2], one['gradients'][0], atol=1e-6)


def test_attention_of_an_image_is_what_its_patches_receive(runs):
  run = runs['vision']
  found = run.probe('attention')
  weights = found.arrays['weights']
  patches = (tiny_images.SIDE // 2) ** 2
  assert weights.shape == (2, 2, patches, patches)
  (heat,) = (panel for panel in found.panels if 'receives' in panel.title)
  assert np.allclose(heat.values.reshape(2, 2, patches), weights.mean(2))
  assert np.allclose(heat.values.sum((-1, -2)), 1, atol=1e-5)


def test_latents_are_counted_as_an_evaluation_counts_them(runs):
  run = runs['vae']
  found, measured = run.probe('latents').arrays, run.evaluate()
  assert (found['variance'] > 0.01).sum() == measured['active_units']
  assert found['divergence'].sum() == pytest.approx(measured['kl'], rel=1e-4)
  assert np.all(np.diff(found['divergence'][found['order']]) <= 0)


@pytest.mark.parametrize('name', ['vae', 'conditional', 'plain'])
def test_a_walk_changes_one_latent_of_the_image(runs, name):
  run = runs[name]
  found = run.probe('latents', row=1)
  walks, positions = found.arrays['walks'], found.arrays['positions']
  image = np.asarray(found.panels[0].images[0, 0])[None]
  label = jnp.array([1 % tiny_images.CLASSES])
  variables = {'params': run.params}
  middle = run.model.apply(variables, image, label, method='encode')[0]
  for row, latent in enumerate(found.arrays['order']):
    for step in (0, 4):
      moved = middle.at[0, latent].set(positions[row, step])
      outputs, _ = run.model.apply(variables, moved, label, method='decode')
      expected = jax.nn.sigmoid(outputs) if run.model.likelihood == 'bernoulli' else jnp.clip(outputs, 0, 1)
      assert np.allclose(walks[row, step], expected[0], atol=1e-5)
  if name != 'plain':
    assert np.allclose(positions[:, [0, 4, 8]], [-3, 0, 3])


def test_an_image_of_the_users_is_read_as_one_of_the_data(runs, tmp_path):
  run = runs['mlp']
  ours = run.probe('saliency', row=0).arrays
  pixels = np.round(ours['images'][0] * 255).astype(np.uint8)
  theirs = run.probe('saliency', image=pixels).arrays
  assert np.allclose(ours['gradients'], theirs['gradients'], atol=1e-7)


@pytest.mark.parametrize('name', ['resnet', 'vision', 'vae', 'vq', 'contrastive'])
def test_every_family_of_images_tells_its_activations(runs, name):
  found = runs[name].probe('activations').arrays
  assert len(found) > 3
  assert all(np.isfinite(array).all() for array in found.values())
  assert all(len(array) == 8 for path, array in found.items() if 'block' in path or 'convolution' in path)


def test_a_network_of_values_is_seen_over_an_episode_that_it_plays(tmp_path):
  run = tiny.train(test_q_learning.config_of(), tmp_path / 'run')
  found = run.probe('activations', row=3).arrays
  assert {name: array.shape[1] for name, array in found.items()} == {'output': 2, 'hidden_0': 16, 'head': 2}
  steps = len(found['output'])
  assert 1 < steps <= 48
  with pytest.raises(UsageError, match='acts in a world'):
    run.probe('activations', text='a whale')


def test_what_does_not_fit_is_one_line(runs):
  for name, probe, choices, words in (
    ('vq', 'latents', {}, 'has no latents to walk along'),
    ('vae', 'saliency', {}, 'tells neither tokens nor classes'),
    ('resnet', 'attention', {}, 'has no attention'),
    ('resnet', 'lens', {}, 'does not write tokens'),
    ('mlp', 'saliency', {'text': 'a whale'}, 'reads images'),
    ('mlp', 'saliency', {'image': np.zeros((3, 3, 1))}, 'takes uint8'),
    ('mlp', 'saliency', {'row': 11}, 'has 11 rows'),
    ('mlp', 'loss', {}, 'predicts no tokens'),
  ):
    with pytest.raises(UsageError, match=words):
      runs[name].probe(probe, **choices)
