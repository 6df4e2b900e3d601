"""The Transformer that sees images against one written out in PyTorch with the same weights."""

import jax
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from aigc_jax import models
from aigc_jax.errors import UsageError
from aigc_jax.models.vision_transformer import VisionTransformer, patches_of

MODEL = VisionTransformer((8, 12, 3), classes=5, patch_size=4, layers=2, heads=2, width=12)


def tensor(array):
  return torch.tensor(np.array(array))


def noisy(variables):
  leaves, tree = jax.tree.flatten(variables)
  draw = np.random.default_rng(0)
  return jax.tree.unflatten(
    tree, [np.asarray(x) + draw.normal(0, 0.2, x.shape).astype(np.float32) for x in leaves]
  )


def torch_logits(params, images):
  """The patches by a convolution, as Dosovitskiy et al.'s own code has them."""
  params = jax.tree.map(tensor, params)
  flat = lambda x, axes: x.flatten(*axes)
  kernel = params['patch']['kernel'].reshape(4, 4, 3, 12).permute(3, 2, 0, 1)
  x = F.conv2d(tensor(images).permute(0, 3, 1, 2), kernel, params['patch']['bias'], stride=4)
  x = x.flatten(2).transpose(1, 2) + params['position']
  norm = lambda x, p: F.layer_norm(x, (12,), p['scale'], p['bias'], 1e-6)
  for i in range(2):
    block = params[f'block_{i}']
    y, parts = norm(x, block['attention_norm']), block['attention']
    heads = []
    for name in ('query', 'key', 'value'):
      made = y @ flat(parts[name]['kernel'], (1,)) + parts[name]['bias'].flatten()
      heads.append(made.unflatten(-1, (2, 6)).transpose(1, 2))
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    x = x + mixed @ flat(parts['output']['kernel'], (0, 1)) + parts['output']['bias']
    y = norm(x, block['mlp_norm'])
    y = F.gelu(y @ block['mlp']['up']['kernel'] + block['mlp']['up']['bias'])
    x = x + y @ block['mlp']['down']['kernel'] + block['mlp']['down']['bias']
  x = norm(x, params['final_norm']).mean(1)
  return (x @ params['head']['kernel'] + params['head']['bias']).numpy()


def test_logits_are_those_of_torch():
  images = np.random.default_rng(1).random((3, 8, 12, 3), np.float32)
  params = noisy(MODEL.init(jax.random.key(0), images))['params']
  found = jax.jit(lambda params: MODEL.apply({'params': params}, images))(params)
  assert found.shape == (3, 5)
  # float32 sums of some hundred terms in another order
  np.testing.assert_allclose(found, torch_logits(params, images), rtol=2e-5, atol=2e-5)


def test_patches_are_squares_row_by_row():
  images = np.random.default_rng(1).random((2, 8, 12, 3), np.float32)
  patches = patches_of(images, 4)
  assert patches.shape == (2, 6, 48)
  np.testing.assert_array_equal(patches[1, 4].reshape(4, 4, 3), images[1, 4:8, 4:8])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'heads': 5}, 'heads: 5 do not divide'),
    ({'patch_size': 3}, 'patch_size: 3 does not divide .* use 1, 2, 4'),
  ],
)
def test_what_does_not_fit_is_refused(fields, message):
  given = {'name': 'vision_transformer', 'image_shape': [8, 12, 3], 'heads': 2, 'width': 12, 'patch_size': 4}
  models.check(given)
  with pytest.raises(UsageError, match=message):
    models.check(given | fields)
