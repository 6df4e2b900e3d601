"""The watermark's green lists, what detection finds without it, and what it finds with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from aigc_jax.errors import DataError, UsageError
from aigc_jax.generation import Sampling, decode, watermark
from aigc_jax.generation.watermark import Watermark
from tests.generation import toys


def test_green_lists_are_functions_of_key_and_token_and_hold_the_exact_share():
  lists = lambda key, before, fraction=0.25: np.asarray(
    watermark.green_lists(jnp.uint32(key), jnp.array(before), 200, fraction)
  )
  green = lists(7, [3, 5, 3, 9])
  np.testing.assert_array_equal(green.sum(1), 50)
  np.testing.assert_array_equal(green[0], green[2])
  np.testing.assert_array_equal(lists(7, [9])[0], green[3])
  overlap = lambda a, b: (a & b).sum()  # of two independent lists, 12.5 of 200 by chance
  assert overlap(green[0], green[1]) < 25
  assert overlap(lists(8, [3])[0], green[0]) < 25
  np.testing.assert_array_equal(lists(7, [1, 2], 0.5).sum(1), 100)


def test_detection_counts_the_tokens_of_the_green_lists():
  generator = np.random.default_rng(1)
  tokens = generator.permutation(60)
  green = watermark.green_lists(jnp.uint32(5), jnp.array(tokens[:-1]), 60, 0.4)
  expected = int(green[np.arange(59), tokens[1:]].sum())
  found = watermark.detect(tokens, 60, 5, 0.4)
  assert (found.green, found.counted) == (expected, 59)
  assert found.z_score == pytest.approx((expected - 0.4 * 59) / np.sqrt(59 * 0.4 * 0.6))


def test_z_scores_of_unmarked_texts_are_standard_normal():
  """Kolmogorov-Smirnov over 300 texts of 400 even random tokens of 1,000."""
  generator = np.random.default_rng(0)
  found = [watermark.detect(generator.integers(0, 1000, 400), 1000, 42) for _ in range(300)]
  scores = np.array([detection.z_score for detection in found])
  jitter = generator.uniform(-0.5, 0.5, 300) / np.sqrt(399 * 0.25 * 0.75)  # counts are whole
  assert stats.kstest(scores + jitter, 'norm').pvalue > 1e-2
  for detection in found[:5]:
    assert detection.p_value == pytest.approx(stats.norm.sf(detection.z_score))


def test_a_marked_text_is_found_with_its_key_alone():
  """From a model that says anything: even logits over 500 tokens."""
  toy = toys.scripted([0] * 4, 500)
  even = toy.decoder, np.zeros_like(toy.params)
  sampling = Sampling(processors=(Watermark(11, 0.25, 2.0),))
  made = decode.generate(*even, [np.array([1])] * 4, jax.random.key(3), sampling, 200)
  for tokens in made.tokens:
    assert watermark.detect(tokens, 500, 11).z_score > 6
    assert abs(watermark.detect(tokens, 500, 12).z_score) < 4
  # delta 2 and gamma 1/4 make a green token's chance a e^2 / (a e^2 + 1 - a)
  chance = 0.25 * np.exp(2) / (0.25 * np.exp(2) + 0.75)
  green = sum(watermark.detect(tokens, 500, 11).green for tokens in made.tokens)
  counted = sum(watermark.detect(tokens, 500, 11).counted for tokens in made.tokens)
  assert stats.binomtest(green, counted, chance).pvalue > 1e-3


def test_repeated_pairs_count_once():
  assert watermark.detect([1, 2] * 100, 50, 0).counted == 2


def test_what_cannot_be_detected_is_refused():
  with pytest.raises(DataError, match='1 tokens is too short'):
    watermark.detect([1], 50, 0)
  with pytest.raises(UsageError, match='watermark: its key'):
    watermark.detect([1, 2], 50, -1)
  with pytest.raises(UsageError, match='watermark_fraction'):
    watermark.detect([1, 2], 50, 1, 1.5)
