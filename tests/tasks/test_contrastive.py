"""Contrastive learning: the loss against brute force, over all devices, and what a batch must be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from aigc_jax import api, tasks
from aigc_jax.errors import UsageError
from aigc_jax.task import Context
from aigc_jax.tasks import contrastive
from aigc_jax.tasks.losses import info_nce
from aigc_jax.training import prepare
from tests import tiny_images

ALONE = Context(jax.random.key(0), jnp.int32(0), True)


def brute_force(views, mask, temperature):
  """Chen et al. 2020, eq. 1, a term at a time, in float64."""
  views = views.astype(np.float64)
  views /= np.linalg.norm(views, axis=-1, keepdims=True)
  all_views = [(i, j) for i in range(len(views)) for j in range(2) if mask[i]]
  nats = np.zeros(len(views))
  for i, j in all_views:
    power = lambda other, i=i, j=j: np.exp(views[i, j] @ views[other] / temperature)
    below = sum(power(other) for other in all_views if other != (i, j))
    nats[i] += -np.log(power((i, 1 - j)) / below) / 2
  return nats


@pytest.fixture
def views():
  return np.random.default_rng(0).normal(size=(6, 2, 5)).astype(np.float32)


def test_the_loss_is_that_of_the_paper(views):
  for mask in (np.ones(6, np.float32), np.array([1, 1, 0, 1, 1, 0], np.float32)):
    nats, _ = info_nce(views, mask, 0.3, ALONE)
    np.testing.assert_allclose(nats * mask, brute_force(views, mask, 0.3), rtol=1e-5, atol=1e-6)


def test_padding_is_no_candidate_and_has_no_slope(views):
  mask = np.array([1, 1, 0, 1, 1, 0], np.float32)
  total = lambda views: (info_nce(views, mask, 0.3, ALONE)[0] * mask).sum()
  changed = views.copy()
  changed[2] += 7
  np.testing.assert_allclose(total(views), total(changed), rtol=1e-6)
  slope = np.asarray(jax.grad(total)(views))
  assert (slope[mask == 0] == 0).all()
  assert (np.abs(slope[mask > 0]).max((1, 2)) > 0).all()
  assert np.isfinite(jax.grad(lambda v: (info_nce(v, 0 * mask, 0.3, ALONE)[0]).sum())(views)).all()


def test_the_nearest_are_found_where_views_agree(views):
  views[:, 1] = views[:, 0] + 1e-3
  nats, found = info_nce(views, np.ones(6, np.float32), 0.05, ALONE)
  assert (found == 1).all()
  assert float(nats.max()) < 0.5


@pytest.mark.parametrize('value', [0.0, 1.0])
def test_views_that_are_all_alike_are_found_by_chance(value):
  """An encoder that says the same of all images has not told them apart."""
  views, mask = np.full((6, 2, 5), value, np.float32), np.array([1, 1, 0, 1, 1, 1], np.float32)
  nats, found = info_nce(views, mask, 0.5, ALONE)
  np.testing.assert_allclose(nats[mask > 0], np.log(9), rtol=1e-6)
  np.testing.assert_allclose(found[mask > 0], 1 / 9, rtol=1e-6)


def test_devices_see_the_negatives_of_all(views):
  """Value and slope of a batch over three devices: those of one."""
  mask = np.array([1, 1, 0, 1, 1, 0], np.float32)
  mesh = Mesh(np.array(jax.devices()[:3]), ('data',))

  def total(views, mask, context):
    return (info_nce(views, mask, 0.3, context)[0] * mask).sum()

  def of_device(views, mask):
    value, slope = jax.value_and_grad(total)(views, mask, ALONE._replace(axis='data'))
    return jax.lax.psum(value, 'data'), slope

  specs = P('data'), P('data')
  run = jax.jit(jax.shard_map(of_device, mesh=mesh, in_specs=specs, out_specs=(P(), P('data'))))
  value, slope = run(views, mask)
  expected, wanted = jax.value_and_grad(total)(views, mask, ALONE)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(slope, wanted, rtol=1e-5, atol=1e-7)


def config(folder, **sections):
  source = tiny_images.write_images(folder / 'images.npz')
  made = tiny_images.config(source, 'mlp', **sections)
  task = {'name': 'contrastive', 'projection_widths': (8, 4), 'labels_per_class': 2}
  return made | {'task': task | sections.get('task', {})}


def built(folder, **sections):
  """(Experiment, its params, its extra, a batch) of a config."""
  experiment = prepare.prepare(api.read_config(config(folder, **sections)))
  batch = experiment.dataset.example()
  params, extra = experiment.task.init(jax.random.key(0), batch)
  return experiment, params, extra, batch


def test_two_views_of_an_image_differ_and_a_view_is_of_its_image(tmp_path):
  experiment, params, extra, batch = built(tmp_path, task={'crop_area': None, 'flip': False, 'jitter': 0.1})
  _, found = experiment.task.collect(params, extra, batch, ALONE)
  views = np.asarray(found['views'])
  assert views.shape == (8, 2, 8, 8, 1)
  assert (views[:, 0] != views[:, 1]).any((1, 2, 3)).all()
  images = experiment.dataset.resident['images'][batch['rows']] / 255
  for i in range(8):
    distance = np.square(views[i, 0] - images).mean((1, 2, 3))
    assert distance[i] < 2 * distance.min() + 1e-9


def test_features_learned_without_labels_tell_the_classes(tmp_path):
  """Stripes, and labels that no training step reads: the features separate them, and the run says so."""
  sections = {'training': {'steps': 60, 'evaluate_every': 60}, 'data': {'batch_size': 24}}
  task = {'crop_area': None, 'flip': False, 'jitter': 0.2, 'temperature': 0.2}
  run = api.train(config(tmp_path, task=task, **sections), workdir=tmp_path / 'run', quiet=True)
  last = run.evaluate()
  assert last['probe_accuracy'] > 0.9
  assert last['neighbour_accuracy'] > 0.9
  assert (tmp_path / 'run/samples/00000060-embeddings.png').exists()
  assert (tmp_path / 'run/samples/00000060-views.png').exists()
  other = tiny_images.write_images(tmp_path / 'other.npz', seed=5)
  assert run.evaluate(other)['probe_accuracy'] > 0.9, 'the labelled images are those of the run'


@pytest.mark.parametrize(
  ('sections', 'message'),
  [
    ({'data': {'batch_size': 1}}, 'batch_size: 1 image has no other to be told from'),
    ({'task': {'projection_widths': ()}}, 'projection_widths: is empty'),
    ({'data': {'binarization': 'dynamic'}}, "binarization: 'dynamic' draws pixels anew"),
    ({'training': {'microbatches': 2}}, 'looks across the whole batch'),
    ({'model': {'name': 'transformer'}}, "'transformer' is no model for the task 'contrastive'"),
  ],
)
def test_what_cannot_be_contrasted_is_refused(tmp_path, sections, message):
  given = config(tmp_path, **sections)
  if 'model' in sections:
    given['model'] = sections['model']
  with pytest.raises(UsageError, match=message):
    api.train(given, workdir=tmp_path / 'run', quiet=True)
  assert not (tmp_path / 'run').exists()


def test_metrics_of_which_more_is_better_are_named():
  assert set(contrastive.HIGHER_IS_BETTER) == {'contrast_accuracy', 'probe_accuracy', 'neighbour_accuracy'}
  assert tasks.KINDS['contrastive'].room is contrastive
