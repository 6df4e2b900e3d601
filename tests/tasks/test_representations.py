"""What features are worth: a linear probe and nearest neighbours against plain solvers, and the few labelled images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from aigc_jax.tasks import representations

CLASSES = 3


def clouds(count, seed=0):
  """(features [count, 5] of three clouds that overlap, one of them wide along an axis; labels [count])."""
  draw = np.random.default_rng(seed)
  labels = (np.arange(count) % CLASSES).astype(np.int32)
  middles = np.random.default_rng(7).normal(0, 1.5, (CLASSES, 5))
  features = middles[labels] + draw.normal(0, 1, (count, 5)) * (1, 1, 1, 1, 10)
  return features.astype(np.float32), labels


def test_the_probe_is_the_logistic_regression_that_scipy_finds():
  (few, labels), (asked, _) = clouds(30), clouds(200, seed=1)
  normal = lambda x: x / np.sqrt(np.square(x.astype(np.float64)).mean(1, keepdims=True))

  def cost(flat):
    kernel, bias = flat[:-CLASSES].reshape(5, CLASSES), flat[-CLASSES:]
    logits = normal(few) @ kernel + bias
    nats = scipy.special.logsumexp(logits, 1) - logits[np.arange(len(labels)), labels]
    return nats.sum() + 0.5 * np.square(kernel).sum()

  best = scipy.optimize.minimize(cost, np.zeros(6 * CLASSES), tol=1e-9).x
  logits = normal(asked) @ best[:-CLASSES].reshape(5, CLASSES) + best[-CLASSES:]
  found = np.asarray(representations.linear_probe(few, labels, CLASSES, asked))
  gap = np.diff(np.sort(logits, 1)[:, -2:], axis=1)[:, 0]
  sure = gap > 1e-3  # float32 may tell two classes that are as good apart otherwise
  assert sure.sum() > 190
  np.testing.assert_array_equal(found[sure], logits.argmax(1)[sure])


def test_the_nearest_vote_by_their_angles():
  (few, labels), (asked, _) = clouds(30), clouds(100, seed=1)
  found = representations.nearest_neighbours(few, labels, CLASSES, asked, 4)
  for guess, row in zip(np.asarray(found), asked, strict=True):
    closeness = few @ row / np.linalg.norm(few, axis=1) / np.linalg.norm(row)
    votes = np.zeros(CLASSES)
    for i in np.argsort(-closeness)[:4]:
      votes[labels[i]] += np.exp(closeness[i] / representations.SHARPNESS)
    assert guess == votes.argmax()
  everyone = representations.nearest_neighbours(few, labels, CLASSES, asked, 1000)
  assert everyone.shape == (100,), 'more neighbours than there are: all of them'
  own = representations.nearest_neighbours(few, labels, CLASSES, few, 1)
  np.testing.assert_array_equal(own, labels)


def test_the_labelled_images_are_the_first_of_each_class():
  labels = np.array([2, 0, 0, 1, 0, 2, 1, 2, 1], np.int32)
  images = np.arange(9, dtype=np.uint8)[:, None, None, None] + np.zeros((1, 2, 2, 1), np.uint8)
  found = jax.jit(lambda batch: representations.labelled(batch, 2, 3))({'images': images, 'labels': labels})
  assert sorted(found['labels'].tolist()) == [0, 0, 1, 1, 2, 2]
  assert sorted(found['images'][:, 0, 0, 0].tolist()) == [0, 1, 2, 3, 5, 6]
  resident = {'resident': {'images': images, 'labels': labels}, 'rows': np.zeros(4, np.int32)}
  same = representations.labelled(resident, 2, 3)
  np.testing.assert_array_equal(same['images'], found['images'])
  uneven = representations.labelled({'images': images[:4], 'labels': labels[:4]}, 2, 3)
  assert len(uneven['labels']) == 4, 'no more than there are'


def test_principal_axes_are_those_of_the_covariance():
  features, _ = clouds(60)
  points, shares = representations.principal(features)
  values, axes = np.linalg.eigh(np.cov(features.T.astype(np.float64)))
  np.testing.assert_allclose(shares, values[::-1][:2] / values.sum(), rtol=1e-6)
  along = (features - features.mean(0)) @ axes[:, ::-1][:, :2]
  np.testing.assert_allclose(np.abs(points), np.abs(along), rtol=1e-3, atol=1e-4)  # float32 features
  for scale in (1e-30, 1e30):
    np.testing.assert_allclose(representations.principal(features * np.float32(scale))[1], shares, rtol=1e-4)


@pytest.mark.parametrize(
  ('features', 'shares'),
  [
    (np.ones((1, 5), np.float32), (0, 0)),  # one image
    (np.ones((1, 1), np.float32), (0, 0)),
    (np.arange(4, dtype=np.float32)[:, None], (1, 0)),  # one number for each
    (np.full((4, 5), 3, np.float32), (0, 0)),  # all alike
  ],
)
def test_a_map_without_two_axes_is_flat(features, shares):
  points, found = representations.principal(features)
  assert points.shape == (len(features), 2)
  np.testing.assert_array_equal(found, shares)
  picture = representations.drawn_map(features, np.zeros(len(features), int), ['plain'])
  assert (picture != 255).any()


def test_a_map_has_a_colour_for_each_class():
  features, labels = clouds(60)
  picture = representations.drawn_map(features, labels, ['plain', 'striped', '棉布'])
  assert picture.dtype == np.uint8
  assert picture.ndim == 3
  assert len({tuple(c) for c in picture.reshape(-1, 3).tolist()}) > 10
  many = representations.drawn_map(features, labels, [str(i) for i in range(30)])
  assert (many != 255).any()
  assert jnp.isfinite(jnp.asarray(many)).all()


def test_what_cannot_be_told_is_guessed_from_the_labels_alone():
  """Features of an encoder that says nothing, and classes without a labelled image."""
  (some, _), labels = clouds(9), np.array([1, 1, 1, 1, 2, 2, 1, 1, 2], np.int32)
  for features in (np.zeros((9, 5), np.float32), np.ones((9, 5), np.float32)):
    np.testing.assert_array_equal(representations.linear_probe(features, labels, CLASSES, features), 1)
    np.testing.assert_array_equal(representations.nearest_neighbours(features, labels, CLASSES, some, 9), 1)
  for guess in (representations.linear_probe, lambda *a: representations.nearest_neighbours(*a, 3)):
    assert 0 not in np.asarray(guess(some, labels, CLASSES, some)), 'a class that no label is of'
    np.testing.assert_array_equal(guess(some, np.full(9, 2), CLASSES, some), 2)
