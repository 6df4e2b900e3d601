"""Autoencoders through the contract: the exact case, padding, devices, microbatches, floats, shapes and pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax import models, tasks
from aigc_jax.config import floats_of
from aigc_jax.errors import UsageError
from aigc_jax.task import Context
from aigc_jax.tasks.autoencoding_pictures import great_circle
from aigc_jax.training import parallel
from tests import ppca
from tests.compilations import count_compilations
from tests.images import batch_at, config, dataset, run

VQ = {'name': 'vq_autoencoder', 'widths': (4,), 'residual_blocks': 1, 'residual_width': 3, 'code_width': 3,
      'codebook_size': 7}  # fmt: skip
DENSE = {'widths': (9,), 'latent_width': 3}
REVIVING = {'revive_below': 0.9, 'codebook_decay': 0.5}  # in each step some code starts anew


LARGER = 9  # a pixel of 6 x 5 images becomes a square of so many

# --- the exact case ---


def test_with_the_exact_posterior_every_bound_is_the_likelihood():
  """p(x, z) / q(z | x) is the same for all z, so one sample is as good as many."""
  truth, params = ppca.exact(), ppca.parameters()
  np.testing.assert_allclose(
    ppca.expected_elbo(params), truth, atol=1e-4
  )  # float32 sums of 16 pixels over 0.09
  for samples in (1, 10):
    for key in (0, 1):
      assert ppca.bounds(params, samples, key)[1] == pytest.approx(truth.mean(), abs=1e-4)


def test_with_a_wrong_posterior_the_bound_rises_to_the_likelihood():
  truth, params = ppca.exact().mean(), ppca.parameters(shift=0.3, widen=1.5)
  rising = [np.mean([ppca.bounds(params, k, key)[1] for key in range(10)]) for k in (1, 10, 100, 1000)]
  assert float(ppca.expected_elbo(params).mean()) < rising[1]
  assert rising == sorted(rising)
  assert rising[0] < truth - 0.5
  assert rising[-1] == pytest.approx(truth, abs=0.02)  # what is left of the noise of 10 x 16 x 1,000 samples


# --- one device, many, microbatches, padding ---


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['mesh', 'pmap'])
def test_four_devices_give_the_numbers_of_one(mode):
  """Codes draw no noise but the seeds of dead ones, which are the same everywhere."""
  given = config(VQ, task=REVIVING)
  alone = run(given)
  spread = run(given | {'parallel': {**given['parallel'], 'mode': mode, 'data': 4}}, devices=4)
  # sums in another order, magnified by Adam where gradients are tiny
  np.testing.assert_allclose(spread[0], alone[0], rtol=1e-4)
  for ours, theirs in zip(jax.tree.leaves(spread[1][:-1]), jax.tree.leaves(alone[1][:-1]), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)
  assert spread[2].keys() == alone[2].keys()
  for name, pair in spread[2].items():
    np.testing.assert_allclose(pair[0], alone[2][name][0], rtol=1e-4, atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(pair[1], alone[2][name][1])


@pytest.mark.parametrize(('devices', 'microbatches'), [(2, 2)])
def test_noise_is_drawn_for_the_whole_batch_before_it_is_dealt_out(devices, microbatches):
  task = {'noise': 0.1, 'free_bits': 0.05, 'kl_warmup_steps': 5.0}
  alone = run(config(DENSE, task=task))
  given = config(DENSE, task=task, training={'microbatches': microbatches}, parallel={'data': devices})
  spread = run(given, devices=devices)
  np.testing.assert_allclose(spread[0], alone[0], rtol=1e-4)
  for ours, theirs in zip(jax.tree.leaves(spread[1].params), jax.tree.leaves(alone[1].params), strict=True):
    np.testing.assert_allclose(ours, theirs, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize('model', [DENSE, VQ])
def test_padding_changes_nothing(model):
  """Not a loss, a gradient, a codebook or a metric, whatever lies in the padded rows."""
  given = config(model, task=REVIVING if model is VQ else {'importance_samples': 3})

  def other(step):
    batch = batch_at(step)
    batch['images'][batch['mask'] == 0] = 0.123 if step else 0.7  # the codebook begins with the first batch
    return batch

  one, two = run(given), run(given, batches=other)
  np.testing.assert_array_equal(one[0], two[0])
  jax.tree.map(np.testing.assert_array_equal, one[1]._replace(key=0), two[1]._replace(key=0))
  jax.tree.map(np.testing.assert_array_equal, one[2], two[2])


def test_beta_is_an_input_of_the_program():
  given = config(DENSE)
  program = parallel.make_parallel(given, tasks.build, jax.devices()[:1])
  floats = lambda beta: program.put_floats(floats_of(given) | {'task.beta': beta})
  state = program.init(floats(1.0), jax.random.key(0), batch_at(0))
  batch, means = program.put_batch(batch_at(1)), []
  program.evaluate(floats(1.0), state, batch)
  with count_compilations() as later:
    for beta in (0.0, 1.0, 3.0):
      sums, _ = program.evaluate(floats(beta), state, batch)
      means.append({name: float(s) for name, (s, _) in sums.items() if s.ndim == 0})
  assert not later
  assert means[0]['loss'] == pytest.approx(means[0]['reconstruction'], rel=1e-6)
  assert means[0]['kl'] > 0
  for beta, found in zip((0.0, 1.0, 3.0), means, strict=True):
    assert found['loss'] == pytest.approx(found['reconstruction'] + beta * found['kl'], rel=1e-5)
    assert found['elbo'] == pytest.approx(-found['reconstruction'] - found['kl'], rel=1e-5)


# --- shapes ---


@pytest.mark.parametrize('shape', [(7, 5, 3), (28, 28, 1), (33, 17, 2), (1, 2, 1)])
@pytest.mark.parametrize('model', [
  {'architecture': 'convolutional', 'widths': (2, 3, 4), 'likelihood': 'logistic'},
  {'architecture': 'dense', 'widths': (6, 5), 'conditional': True, 'classes': 4, 'posterior': 'none'},
  VQ | {'widths': (2, 3), 'likelihood': 'gaussian'},
  VQ | {'widths': ()},
])  # fmt: skip
def test_images_of_any_size_come_back(model, shape):
  module = models.build(config(model, shape)['model'])
  images, labels = jnp.ones((2, *shape)), jnp.array([0, 3])

  def there_and_back(key):
    params = module.init(key, images, labels)
    encoded = module.apply(params, images, labels, method='encode')
    latents = encoded[0] if isinstance(encoded, tuple) else encoded
    return latents, module.apply(params, latents, labels, method='decode')

  latents, (outputs, log_scale) = jax.eval_shape(there_and_back, jax.random.key(0))
  assert outputs.shape == images.shape
  assert (log_scale is not None) == (model.get('likelihood') in ('logistic', 'gaussian'))
  if 'name' in model:
    halves = 2 ** len(model['widths'])
    assert latents.shape == (2, -(-shape[0] // halves), -(-shape[1] // halves), 3)
  else:
    assert latents.shape == (2, 20)


def test_a_doubling_is_a_transposed_convolution():
  """Against PyTorch's, of 4 x 4, stride 2 and padding 1: the kernel's rows are 3, 1 for even and 2, 0 for odd."""
  import torch

  from aigc_jax.models.convolutions import Doubling

  draw = np.random.default_rng(0)
  x, kernel = (
    draw.normal(size=(2, 3, 5, 4)).astype(np.float32),
    draw.normal(size=(4, 6, 4, 4)).astype(np.float32),
  )
  # ours[i, j, c, p, q, f]: neighbour (i, j) of a corner writes its pixel (p, q), which is theirs at 3 - 2i - (1 - p)
  rows = np.array([[2, 3], [0, 1]])  # [neighbour, pixel]
  ours = kernel[:, :, rows[:, :, None, None], rows[None, None]]  # [c, f, i, p, j, q]
  ours = ours.transpose(2, 4, 0, 3, 5, 1)
  params = {'params': {'kernel': jnp.asarray(ours), 'bias': jnp.zeros(6)}}
  found = Doubling(6, (6, 10)).apply(params, jnp.asarray(x))
  theirs = torch.nn.functional.conv_transpose2d(
    torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(kernel), stride=2, padding=1
  )
  np.testing.assert_allclose(found, theirs.permute(0, 2, 3, 1), atol=1e-4)


def test_codes_are_image_tokens():
  given = config(VQ)
  task, module = tasks.build(given), models.build(given['model'])
  params, extra = task.init(jax.random.key(0), batch_at(0))
  images = jnp.asarray(batch_at(0)['images'])
  codes = module.apply({'params': params}, images, extra['codes'], method='codes')
  assert codes.shape == (8, 3, 3)
  assert codes.dtype == jnp.int32
  assert 0 <= int(codes.min()) <= int(codes.max()) < 7
  again, _ = module.apply({'params': params}, codes, extra['codes'], method='from_codes')
  assert again.shape == images.shape
  context = Context(jax.random.key(0), jnp.int32(0), False)
  used = task.evaluate(params, extra, batch_at(0), context)['code_use']
  share = np.bincount(np.asarray(codes[:5]).ravel(), minlength=7) / (5 * 9)
  np.testing.assert_allclose(used[0] / used[1], share, rtol=1e-5)
  report = task.report({'code_use': share, 'loss': 1.0})
  assert report['codes_used'] == (share > 0).sum()
  assert report['codebook_perplexity'] == pytest.approx(np.exp(-sum(p * np.log(p) for p in share if p)))


# --- what people see ---


def made(model, shape=(6, 5, 1), **sections):
  given = config(model, shape, **sections)
  task = tasks.build(given)
  return task, *task.init(jax.random.key(0), batch_at(0, shape))


@pytest.mark.parametrize(('model', 'names'), [
  (DENSE | {'posterior': 'none'}, {'reconstructions', 'interpolation'}),
  (DENSE | {'latent_width': 2, 'likelihood': 'logistic'},
   {'reconstructions', 'interpolation', 'samples', 'latent_map'}),
  (VQ, {'reconstructions'}),
])  # fmt: skip
def test_pictures_are_shown_in_range(model, names):
  task, params, extra = made(model, (6, 5, 3))
  shown = task.show(params, extra, dataset((6, 5, 3)), jax.random.key(1))
  assert {f'{name}.png' for name in names} == set(shown)
  for name, picture in shown.items():
    assert picture.ndim == 3, name
    assert picture.shape[2] == 3, name
    assert picture.min() >= 0, name
    assert picture.max() <= 1, name
  height, width = 6 * LARGER, 5 * LARGER
  # 7 images that are no padding, over theirs
  assert shown['reconstructions.png'].shape[:2] == (2 * (height + 1) + 1, 7 * (width + 1) + 1)
  original = dataset((6, 5, 3)).validation_batches().__next__()['images'][1]
  second = shown['reconstructions.png'][1 : 1 + height, 2 + width : 2 + 2 * width]
  np.testing.assert_array_equal(second[::LARGER, ::LARGER], original)


def test_the_prior_draws_classes():
  task, params, extra = made(DENSE | {'conditional': True, 'classes': 3})
  key = jax.random.key(0)
  height, width = 6 * LARGER + 1, 5 * LARGER + 1
  draw = lambda num, **choices: task.draw(params, extra, None, key, num, **choices)
  assert draw(7).shape == (3 * height + 1, 3 * width + 1, 1)  # a column for each class
  zero, one = (draw(4, label=label) for label in (0, 1))
  assert zero.shape == (2 * height + 1, 2 * width + 1, 1)
  assert np.abs(zero - one).max() > 1e-3
  way = draw(5, label=1, interpolate=True)
  assert way.shape == (height + 1, 5 * width + 1, 1)
  columns = way[1:, 1:].reshape(height, 5, width)[: height - 1, :, : width - 1]
  assert np.abs(np.diff(columns, axis=1)).sum((0, 2)).min() > 0
  with pytest.raises(UsageError, match='label 3: the classes are 0 to 2'):
    draw(4, label=3)


@pytest.mark.parametrize('last', [[0.5], [-0.5]])
def test_a_way_along_one_latent_stays_between_its_ends(last):
  points = great_circle(np.float32([1.0]), np.float32(last), 5)
  np.testing.assert_allclose(points[:, 0], np.linspace(1.0, last[0], 5), atol=0.05)


def test_what_has_no_prior_or_classes_draws_nothing():
  assert made(VQ)[0].draw is None
  assert made(DENSE | {'posterior': 'none'})[0].draw is None
  task, params, extra = made(DENSE)
  with pytest.raises(UsageError, match='knows no classes'):
    task.draw(params, extra, None, jax.random.key(0), 4, 1)


# --- what the data decides ---


def test_the_data_decides_shape_and_classes():
  given = config({'conditional': True}, shape=None)
  found = tasks.complete(given, dataset((6, 5, 2), classes=4))['model']
  assert found['image_shape'] == [6, 5, 2]
  assert found['classes'] == 4
  assert tasks.complete(config({}, shape=None), dataset())['model']['classes'] is None


@pytest.mark.parametrize(('given', 'classes', 'words'), [
  (dict(model={'image_shape': (5, 5, 1)}), 3, 'image_shape: 5, 5, 1, but the images'),
  (dict(model={'conditional': True}), 1, 'the data has 1 classes'),
  (dict(model={'name': 'transformer', 'image_shape': None}), 3, 'is no autoencoder'),
  (dict(model={'likelihood': 'logistic'}, data={'binarization': 'fixed'}), 3, "use 'bernoulli'"),
  (dict(model=VQ, task={'importance_samples': 3}), 3, 'only a Gaussian posterior'),
  (dict(model={}, task={'noise': 1.5, 'corruption': 'masking'}), 3, 'no fraction of masked pixels'),
])  # fmt: skip
def test_what_does_not_fit_is_refused(given, classes, words):
  model = given.pop('model')
  made = config({} if model.get('name') == 'transformer' else model, **given)
  if model.get('name') == 'transformer':
    made = made | {'model': {'name': 'transformer'}}
  with pytest.raises(UsageError, match=words):
    tasks.complete(made, dataset(classes=classes))


def test_data_without_images_is_refused():
  text = dataset()
  text.facts.clear()
  with pytest.raises(UsageError, match='has no images'):
    tasks.complete(config({}), text)


def test_models_are_checked():
  with pytest.raises(UsageError, match='widths: is empty'):
    models.check(config({'architecture': 'convolutional', 'widths': ()})['model'])
  with pytest.raises(UsageError, match='height, width and channels'):
    models.check(config({}, shape=(28, 28))['model'])
