"""Image classifiers and batch normalization against PyTorch with the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aigc_jax import models
from aigc_jax.errors import UsageError
from aigc_jax.models import classifier, convolutions
from aigc_jax.models.normalization import BatchNorm

FEW = dict(image_shape=(9, 7, 2), classes=3)  # odd sides, which halve unevenly
MODELS = {
  'mlp': classifier.MultilayerPerceptron(**FEW, widths=(6, 5)),
  'cnn': classifier.ConvolutionalNetwork(**FEW, channels=(4, 5), dense_width=6),
  'resnet': classifier.ResidualNetwork(**FEW, channels=(4, 6), blocks=2),
}


def images(shape=(5, 9, 7, 2), seed=0):
  return np.random.default_rng(seed).random(shape, np.float32)


def initial(model, shape=(5, 9, 7, 2), seed=1):
  """Variables with noise in every leaf, so that no bias or statistic is left at 0 or 1."""
  variables = jax.jit(model.init)(jax.random.key(seed), images(shape))
  leaves, tree = jax.tree.flatten(variables)
  draw = np.random.default_rng(seed)
  noisy = [np.asarray(leaf) + draw.uniform(0.05, 0.3, leaf.shape).astype(np.float32) for leaf in leaves]
  return jax.tree.unflatten(tree, noisy)


def tensor(array):
  return torch.tensor(np.array(array))


def channels_first(x):
  return tensor(x).permute(0, 3, 1, 2)


def channels_last(x):
  return x.permute(0, 2, 3, 1)


def torch_dense(params, x):
  return F.linear(x, tensor(params['kernel']).T, tensor(params['bias']))


def torch_convolution(params, x, **options):
  kernel = tensor(params['kernel']).permute(3, 2, 0, 1)
  bias = tensor(params['bias']) if 'bias' in params else None
  return F.conv2d(x, kernel, bias, padding=kernel.shape[-1] // 2, **options)


def torch_mlp(variables, x):
  params, x = variables['params'], tensor(x).flatten(1)
  for name in ('hidden_0', 'hidden_1'):
    x = torch_dense(params[name], x).relu()
  return torch_dense(params['head'], x)


def torch_cnn(variables, x):
  params, x = variables['params'], channels_first(x)
  for name in ('convolution_0', 'convolution_1'):
    x = F.max_pool2d(torch_convolution(params[name], x).relu(), 2)
  x = torch_dense(params['hidden'], channels_last(x).flatten(1)).relu()
  return torch_dense(params['head'], x)


def torch_resnet(variables, x):
  """Of two stages of two blocks, written out; statistics are the running ones."""
  params, statistics = variables['params'], variables['batch_stats']

  def normalized(x, name):
    mean, variance = (tensor(statistics[name][n]) for n in ('mean', 'variance'))
    return F.batch_norm(x, mean, variance, *(tensor(params[name][n]) for n in ('scale', 'bias'))).relu()

  x = torch_convolution(params['stem'], channels_first(x))
  for name, stride in (
    ('stage_0_block_0', 1),
    ('stage_0_block_1', 1),
    ('stage_1_block_0', 2),
    ('stage_1_block_1', 1),
  ):
    y = normalized(x, f'{name}_norm_0')
    if stride > 1:
      x = torch_convolution(params[f'{name}_shortcut'], y, stride=stride)
    y = normalized(torch_convolution(params[f'{name}_convolution_0'], y, stride=stride), f'{name}_norm_1')
    x = x + torch_convolution(params[f'{name}_convolution_1'], y)
  return torch_dense(params['head'], normalized(x, 'final_norm').mean((2, 3)))


@pytest.mark.parametrize(('name', 'peer'), [('mlp', torch_mlp), ('cnn', torch_cnn), ('resnet', torch_resnet)])
def test_logits_are_those_of_torch(name, peer):
  variables, x = initial(MODELS[name]), images(seed=2)
  found = MODELS[name].apply(variables, x)
  assert found.shape == (5, 3)
  assert found.dtype == jnp.float32
  # Float32 sums of some hundred terms in another order.
  np.testing.assert_allclose(found, peer(variables, x).numpy(), rtol=1e-5, atol=1e-5)


def test_batch_norm_is_that_of_torch():
  """Outputs, running statistics, gradients in training; then outputs in evaluation."""
  x, change = 3 + 5 * images((4, 3, 2, 6)), images((4, 3, 2, 6), seed=1)
  peer = nn.BatchNorm2d(6, eps=1e-3, momentum=0.2, dtype=torch.float64)  # PyTorch's own rounding is 3e-5 here
  ours = BatchNorm(0.8, 1e-3)
  variables = initial(ours, x.shape)
  peer.weight.data, peer.bias.data = (tensor(variables['params'][n]).double() for n in ('scale', 'bias'))
  peer.running_mean, peer.running_var = (
    tensor(variables['batch_stats'][n]).double() for n in ('mean', 'variance')
  )

  def total(params, x):
    y, moved = ours.apply(variables | {'params': params}, x, train=True, mutable=['batch_stats'])
    return (y * change).sum(), (y, moved)

  (params, slope), (y, moved) = jax.grad(total, (0, 1), has_aux=True)(variables['params'], x)
  input = channels_first(x).double().requires_grad_()
  output = peer(input)
  (output * channels_first(change)).sum().backward()
  # Numbers near 5 are rounded by 2e-7, and 24 of them are added.
  close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5, atol=2e-5)
  close(y, channels_last(output))
  close(slope, channels_last(input.grad))
  close(params['scale'], peer.weight.grad)
  close(params['bias'], peer.bias.grad)
  close(moved['batch_stats']['mean'], peer.running_mean)
  close(moved['batch_stats']['variance'], peer.running_var)
  close(ours.apply(variables | moved, x), channels_last(peer.eval()(channels_first(x).double())))


def test_variance_far_from_zero_keeps_its_digits():
  x = 1000 + images((64, 8))
  moved = BatchNorm(0.0, 1e-5).init_with_output(jax.random.key(0), x, train=True)[1]['batch_stats']
  # 1e-3 of rounding in numbers near 1000 (2^-14); the difference of two mean squares would be off by 0.06.
  np.testing.assert_allclose(moved['variance'], x.astype(np.float64).var(0, ddof=1), rtol=2e-3)


@pytest.mark.parametrize('name', MODELS)
def test_padding_rows_change_nothing(name):
  model = MODELS[name]
  variables, x = initial(model), images()

  def train(x, mask):
    def total(params):
      logits, moved = model.apply(
        variables | {'params': params}, x, mask=mask, train=True, mutable=['batch_stats']
      )
      return (jnp.sin(logits).sum(-1) * mask).sum(), (logits, moved)

    return jax.jit(jax.grad(total, has_aux=True))(variables['params'])

  alone = train(x[:3], np.ones(3, np.float32))
  padded = train(np.concatenate([x[:3], 9 * x[3:]]), np.array([1, 1, 1, 0, 0], np.float32))
  padded = padded[0], (padded[1][0][:3], padded[1][1])
  for ours, theirs in zip(jax.tree.leaves(padded), jax.tree.leaves(alone), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)  # sums in another order


def test_a_batch_of_no_rows_leaves_the_statistics():
  model = MODELS['resnet']
  variables = initial(model)
  logits, moved = model.apply(variables, images(), mask=np.zeros(5), train=True, mutable=['batch_stats'])
  assert np.isfinite(logits).all()
  jax.tree.map(np.testing.assert_array_equal, moved['batch_stats'], variables['batch_stats'])


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('shape', [(1, 1, 1), (2, 5, 3)])
def test_any_image_size(name, shape):
  model = MODELS[name].clone(image_shape=shape)
  variables = jax.eval_shape(model.init, jax.random.key(0), images((2, *shape)))
  assert jax.eval_shape(model.apply, variables, images((2, *shape))).shape == (2, 3)


def test_a_residual_network_without_stages_is_refused():
  with pytest.raises(UsageError, match='channels: is empty'):
    models.check({'name': 'resnet', 'channels': ()})


@pytest.mark.parametrize('name', MODELS)
def test_dropout_is_off_at_evaluation(name):
  variables, x = initial(MODELS[name]), images()
  model = MODELS[name].clone(dropout=0.5)
  expected = np.asarray(MODELS[name].apply(variables, x))
  np.testing.assert_array_equal(model.apply(variables, x), expected)
  plain, dropped = (
    m.apply(variables, x, train=True, rngs={'dropout': jax.random.key(1)}, mutable=['batch_stats'])[0]
    for m in (MODELS[name], model)
  )
  assert np.abs(plain - dropped).max() > 1e-3


def test_gradient_of_the_maximum_is_that_of_torch():
  x, change = images((2, 5, 4, 3)), images((2, 2, 2, 3), seed=1)
  slope = jax.grad(lambda x: (convolutions.max_pool(x) * change).sum())(x)
  peer = channels_first(x).requires_grad_()
  (F.max_pool2d(peer, 2) * channels_first(change)).sum().backward()
  np.testing.assert_array_equal(slope, channels_last(peer.grad).numpy())


def test_initial_weights_have_the_deviation_of_he():
  model = classifier.ConvolutionalNetwork((8, 8, 8), 10, (64, 64), 256, init_scale=0.5)
  params = jax.jit(model.init)(jax.random.key(0), images((1, 8, 8, 8)))['params']
  for name, gain, inputs in (('convolution_1', 2, 9 * 64), ('hidden', 2, 256), ('head', 1, 256)):
    # 3% of a deviation's sampling error at the 2,560 weights of the smallest.
    assert np.std(params[name]['kernel']) == pytest.approx(0.5 * (gain / inputs) ** 0.5, rel=0.05)
    assert not params[name]['bias'].any()
