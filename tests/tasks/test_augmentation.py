import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from aigc_jax.tasks import augmentation

KEY = jax.random.key(3)
PIXELS = np.random.default_rng(0).integers(1, 256, (40, 5, 6, 2), np.uint8)
CHANGES = {
  'crop': functools.partial(augmentation.random_crop, padding=2),
  'flip': augmentation.random_flip,
  'jitter': functools.partial(augmentation.random_jitter, strength=0.4),
  'dynamic': augmentation.dynamic_binarization,
  'resized': functools.partial(augmentation.random_resized_crop, least_area=0.3),
  'blur': functools.partial(augmentation.random_blur, largest=2.0),
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


def test_a_resized_crop_is_a_stretched_rectangle():
  """The matrices against scipy's linear interpolation at the places that they stand for."""
  size, begin, length = 6, np.array([0.7, 0.0, 2.5]), np.array([3.1, 6.0, 3.5])
  weights = np.asarray(augmentation.stretch(size, jnp.asarray(length), jnp.asarray(begin)))
  np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
  values = np.random.default_rng(0).random(size)
  for i in range(3):
    at = np.clip(begin[i] + (np.arange(size) + 0.5) * length[i] / size - 0.5, 0, size - 1)
    np.testing.assert_allclose(weights[i] @ values, np.interp(at, np.arange(size), values), rtol=1e-5)
  np.testing.assert_allclose(weights[1], np.eye(size), atol=1e-6)  # the whole stays as it is
  whole = augmentation.random_resized_crop(KEY, PIXELS, 1.0)
  np.testing.assert_allclose(whole, PIXELS / np.float32(255), atol=1e-6)
  assert np.isfinite(augmentation.random_resized_crop(KEY, PIXELS, 0.0)).all()


def test_a_resized_crop_has_the_area_that_it_is_asked_for():
  """Of a picture whose pixels are their own coordinates, the corners tell what was cut out."""
  rows, columns = np.meshgrid(np.arange(20.0), np.arange(30.0), indexing='ij')
  image = (np.stack([rows, columns], -1) / 30).astype(np.float32)
  images = np.repeat(image[None], 400, 0)
  found = np.asarray(augmentation.random_resized_crop(KEY, images, 0.3)) * 30
  height = (
    (found[:, -2, 1, 0] - found[:, 1, 1, 0]) / 17 * 20
  )  # from the middle of one pixel to that of another
  width = (found[:, 1, -2, 1] - found[:, 1, 1, 1]) / 27 * 30
  area = height * width / 600
  assert 0.29 < area.min() < 0.35
  assert 0.9 < area.max() <= 1.01
  skew = np.log(width / height / 1.5)
  assert np.abs(skew).max() < np.log(4 / 3) + 0.02
  assert skew.min() < -0.2 < 0.2 < skew.max()
  assert np.ptp(found[:, 0, 0, 0]) > 5
  large = np.asarray(augmentation.random_resized_crop(KEY, images, 0.9)) * 30
  height, width = large[:, -2, 1, 0] - large[:, 1, 1, 0], large[:, 1, -2, 1] - large[:, 1, 1, 1]
  assert 0.89 < (height / 17 * width / 27).min() < 0.91


def test_a_blur_is_the_gaussian_that_scipy_has():
  """Of an image far from the edges, where the two treat what lies beyond alike."""
  images = np.zeros((200, 31, 31, 1), np.float32)
  images[:, 15, 15] = 1
  found = np.asarray(augmentation.random_blur(KEY, images, 2.0))[..., 0]
  untouched = (found == images[..., 0]).all((1, 2))
  assert 70 < untouched.sum() < 130
  np.testing.assert_allclose(found.sum((1, 2)), 1, rtol=1e-5)
  spread = np.sqrt((found[~untouched].sum(2) * np.square(np.arange(31) - 15)).sum(1))
  assert spread.max() < 2.001
  assert np.ptp(spread) > 1.5
  widest = found[~untouched][spread.argmax()]
  peer = scipy.ndimage.gaussian_filter(images[0, ..., 0], spread.max(), truncate=7)
  np.testing.assert_allclose(widest, peer, atol=2e-4)  # its deviation was read off the picture itself


def test_colours_turn_around_grey():
  draw = np.random.default_rng(0)
  images = (0.4 + 0.2 * draw.random((300, 3, 4, 3))).astype(np.float32)  # far from where values are clipped
  found = np.asarray(augmentation.random_colours(KEY, images, 0.4))
  luma = np.array(augmentation.YIQ[0])
  np.testing.assert_allclose(found @ luma, images @ luma, atol=1e-4)
  grey = np.ptp(found, axis=-1).max((1, 2)) < 1e-3
  assert 30 < grey.sum() < 90
  np.testing.assert_allclose(augmentation.random_colours(KEY, images, 0.0)[~grey], images[~grey], atol=1e-3)
  plain = np.repeat(images[..., :1], 3, -1)
  np.testing.assert_allclose(augmentation.random_colours(KEY, plain, 0.4), plain, atol=1e-3)
  saturation = lambda x: np.linalg.norm(x @ np.array(augmentation.YIQ[1:]).T, axis=-1)
  ratio = saturation(found[~grey]) / saturation(images[~grey])
  assert 0.55 < ratio.min() < 0.7 < 1.3 < ratio.max() < 1.45
