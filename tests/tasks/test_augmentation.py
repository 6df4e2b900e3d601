import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aigc_jax.tasks import augmentation

KEY = jax.random.key(3)
PIXELS = np.random.default_rng(0).integers(1, 256, (40, 5, 6, 2), np.uint8)
CHANGES = {
  'crop': functools.partial(augmentation.random_crop, padding=2),
  'flip': augmentation.random_flip,
  'jitter': functools.partial(augmentation.random_jitter, strength=0.4),
  'dynamic': augmentation.dynamic_binarization,
}


@pytest.mark.parametrize('name', CHANGES)
def test_rows_do_not_see_each_other(name):
  change = jax.jit(CHANGES[name])
  found = change(KEY, PIXELS)
  assert found.shape == PIXELS.shape
  others = PIXELS.copy()
  others[::2] = 7
  np.testing.assert_array_equal(change(KEY, others)[1::2], found[1::2])
  np.testing.assert_array_equal(change(KEY, PIXELS), found)
  assert (np.asarray(change(jax.random.key(4), PIXELS)) != found).any()
  same = np.repeat(PIXELS[:1], len(PIXELS), axis=0)  # the same image in each row: draws differ between rows
  assert len(np.unique(np.asarray(change(KEY, same)), axis=0)) > 1


def test_a_crop_is_a_window_of_the_padded_image():
  padding = 2
  found = np.asarray(augmentation.random_crop(KEY, PIXELS, padding))
  assert found.dtype == np.uint8
  padded = np.pad(PIXELS, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  corners = []
  for image, crop in zip(padded, found, strict=True):
    (corner,) = [
      (top, left)
      for top in range(2 * padding + 1)
      for left in range(2 * padding + 1)
      if (image[top : top + 5, left : left + 6] == crop).all()
    ]
    corners.append(corner)
  for axis in (
    0,
    1,
  ):  # every offset, the first and last included; one is missed in 40 draws once in 1,500 keys
    assert {corner[axis] for corner in corners} == set(range(2 * padding + 1))
  np.testing.assert_array_equal(augmentation.random_crop(KEY, PIXELS, 0), PIXELS)


def test_a_flip_mirrors_some_rows_and_twice_changes_nothing():
  found = np.asarray(augmentation.random_flip(KEY, PIXELS))
  mirrored = (found == PIXELS[:, :, ::-1]).all(axis=(1, 2, 3))
  kept = (found == PIXELS).all(axis=(1, 2, 3))
  assert (mirrored ^ kept).all()
  assert 10 <= mirrored.sum() <= 30  # 20 of 40 expected, standard deviation 3.2
  np.testing.assert_array_equal(augmentation.random_flip(KEY, found), PIXELS)


def test_jitter_changes_contrast_and_brightness():
  images = jnp.asarray(0.4 + 0.2 * np.random.default_rng(1).random((40, 5, 6, 1)), jnp.float32)
  jitter = jax.jit(augmentation.random_jitter)  # the strength is traced
  found = np.asarray(jitter(KEY, images, 0.3))
  for before, after in zip(
    np.asarray(images), found, strict=True
  ):  # nothing is clipped at 0.3 of such images
    slope, offset = np.polyfit(before.ravel(), after.ravel(), 1)
    np.testing.assert_allclose(slope * before + offset, after, atol=1e-6)  # a line, up to rounding
    assert 0.7 <= slope <= 1.3
    assert abs(after.mean() - before.mean()) <= 0.3
  np.testing.assert_array_equal(jitter(KEY, images, 0.0), images)
  strong = np.asarray(jitter(KEY, jnp.asarray(PIXELS), 5.0))
  assert strong.dtype == np.float32
  assert (strong.min(), strong.max()) == (0, 1)


def test_dynamic_binarization_draws_by_intensity():
  levels = jnp.asarray([0, 51, 128, 255], jnp.uint8)
  images = jnp.broadcast_to(levels[:, None, None, None], (4, 100, 100, 1))
  drawn = augmentation.dynamic_binarization(KEY, images)
  assert drawn.dtype == jnp.float32
  assert set(np.unique(drawn).tolist()) == {0, 1}
  means = drawn.mean(axis=(1, 2, 3))
  assert (means[0], means[3]) == (0, 1)
  # 10,000 draws each: a standard error of 0.005 at most; five of them
  np.testing.assert_allclose(means, levels / 255, atol=0.025)
