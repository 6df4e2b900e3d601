"""Common runs, n-grams and nearest images against brute force; planted passages are found where they lie."""

import random

import numpy as np
import pytest

from aigc_jax.cards import memorization
from aigc_jax.cards.memorization import SEPARATOR, compare, joined, nearest, symbols
from aigc_jax.tasks.pictures import grid, tiles


def brute_force(samples, text, size):
  """([(length, start, place)], n-grams found, n-grams) by Python's own search in strings."""
  overlaps, found, grams = [], 0, 0
  for sample in samples:
    runs = (
      (length, start, text.find(sample[start : start + length]))
      for length in range(len(sample), 0, -1)
      for start in range(len(sample) - length + 1)
    )
    overlaps.append(next((run for run in runs if run[2] >= 0), (0, 0, -1)))
    pieces = [sample[i : i + size] for i in range(len(sample) - size + 1)]
    grams, found = grams + len(pieces), found + sum(piece in text for piece in pieces)
  return overlaps, found, grams


@pytest.mark.parametrize('table', [1, memorization.TABLE], ids=['by search', 'by table'])
@pytest.mark.parametrize('at_once', [7, memorization.AT_ONCE], ids=['in parts', 'whole'])
def test_runs_are_those_of_brute_force(table, at_once, monkeypatch):
  """Random texts of one to eight symbols, so that they repeat themselves; some symbols are in samples alone."""
  monkeypatch.setattr(memorization, 'TABLE', table)
  monkeypatch.setattr(memorization, 'AT_ONCE', at_once)
  draw = random.Random(0)
  for _ in range(120):
    alphabet = draw.choice(['a', 'ab', 'abc', '明月几时有ab', 'abcdefgh', '😀é明'])
    text = ''.join(draw.choice(alphabet) for _ in range(draw.randint(0, 60)))
    samples = [
      ''.join(draw.choice(alphabet + 'z') for _ in range(draw.randint(0, 25)))
      for _ in range(draw.randint(0, 4))
    ]
    size = draw.randint(1, 7)
    found = compare(list(map(symbols, samples)), symbols(text), size)
    overlaps, *counts = brute_force(samples, text, size)
    assert list(map(tuple, found.overlaps)) == overlaps
    assert [found.found, found.grams] == counts


@pytest.mark.parametrize('length', [1, 2, 3, 31, 32, 33, 47, 63, 64, 65, 200])
def test_a_planted_passage_is_found_with_its_length_and_place(length):
  """Around it stand symbols that the text has nowhere else, so the run can be no longer."""
  draw = np.random.default_rng(length)
  text = draw.integers(0, 40, 5000).astype(np.int32)
  passage = draw.integers(100, 140, length).astype(np.int32)
  text[1234 : 1234 + length] = passage
  sample = np.concatenate([np.full(17, 99), passage, np.full(5, 98)]).astype(np.int32)
  found = compare([np.full(3, 99, np.int32), sample], text, 10)
  assert found.overlaps == [(0, 0, -1), (length, 17, 1234)]
  assert (found.found, found.grams) == (max(length - 9, 0), len(sample) - 9)


def test_no_run_goes_from_one_document_to_the_next():
  text = joined([symbols('abc'), symbols('def')])
  assert text.tolist()[3] == SEPARATOR
  found = compare([symbols('abcdef'), joined([symbols('c'), symbols('d')])], text, 3)
  assert found.lengths.tolist() == [3, 1]
  assert found.overlaps[0] == (3, 0, 0)
  assert compare([symbols('cdef')], text, 3).overlaps == [(3, 1, 4)]


def test_a_copy_of_the_text_is_one_run():
  text = symbols('明月几时有,把酒问青天。' * 3)
  assert compare([text, text[5:]], text, 50).overlaps == [(len(text), 0, 0), (len(text) - 5, 0, 5)]


def test_nearest_images_are_those_of_brute_force(monkeypatch):
  monkeypatch.setattr(memorization, 'ROWS', 13)  # several parts, the last one not full
  draw = np.random.default_rng(0)
  images = draw.integers(0, 256, (50, 4, 3, 1)).astype(np.uint8)
  samples = draw.random((6, 4, 3, 1))
  samples[2] = images[41] / 255
  found = nearest(samples, images, neighbours=5)
  apart = np.array([[np.sqrt(np.square(s - i / 255).sum()) for i in images] for s in samples])
  np.testing.assert_array_equal(found.index, apart.argmin(1))
  np.testing.assert_allclose(found.distance, apart.min(1), atol=1e-12)  # float64, 12 pixels
  np.testing.assert_allclose(found.share, apart.min(1) / np.sort(apart, 1)[:, :5].mean(1), atol=1e-12)
  assert found.index[2] == 41
  assert found.share[2] == 0


@pytest.mark.parametrize('shape', [(28, 28, 1), (8, 8, 1), (64, 48, 3)])
def test_tiles_are_what_a_grid_was_made_of(shape):
  images = np.random.default_rng(0).random((7, *shape)).astype(np.float32)
  np.testing.assert_array_equal(tiles(grid(images, 3), shape, 7), images)
