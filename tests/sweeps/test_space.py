"""Spaces are lists of override dicts: how they join, what is typed, and what is refused."""

import itertools

import numpy as np
import pytest

from aigc_jax.errors import UsageError
from aigc_jax.sweeps import space

RATES, SEEDS = space.sweep('optimizer.learning_rate', [1e-3, 1e-2]), space.sweep('seed', range(3))


def test_a_product_has_every_combination_once_the_last_fastest():
  found = space.product(RATES, SEEDS)
  pairs = [(trial['optimizer.learning_rate'], trial['seed']) for trial in found]
  assert pairs == list(itertools.product([1e-3, 1e-2], range(3)))


def test_zipped_chained_and_fixed_spaces():
  pairs = space.zipit(space.sweep('model.layers', [1, 2]), space.sweep('model.width', [8, 16]))
  assert pairs == [{'model.layers': 1, 'model.width': 8}, {'model.layers': 2, 'model.width': 16}]
  assert space.chainit(RATES, SEEDS) == RATES + SEEDS
  assert space.product(space.fixed('training.steps', 5), SEEDS) == [
    {'training.steps': 5, 'seed': seed} for seed in range(3)
  ]
  assert space.product() == [{}]


def test_ranges_hold_both_ends():
  assert space.linear(0.0, 1.0, 5) == [0.0, 0.25, 0.5, 0.75, 1.0]
  assert space.logarithmic(1e-4, 1e-1, 4) == [1e-4, 1e-3, 1e-2, 1e-1]


def test_draws_are_those_of_their_seed_and_spread_as_they_should():
  for draw in (space.uniform, space.log_uniform):
    assert draw(1e-4, 1.0, 50, seed=3) == draw(1e-4, 1.0, 50, seed=3) != draw(1e-4, 1.0, 50, seed=4)
  found = np.array(space.log_uniform(1e-4, 1.0, 4000))
  assert found.min() >= 1e-4
  assert found.max() <= 1
  # A quarter in each decade; the deviation of such a share is 0.007.
  assert np.abs(np.histogram(np.log10(found), bins=4, range=(-4, 0))[0] / 4000 - 0.25).max() < 0.03
  assert set(space.choices('ab', 50)) == {'a', 'b'}


def test_what_is_typed():
  found = space.parse('optimizer.learning_rate=1e-4, logarithmic(1e-3,1e-2,2) ; config.seed=-1..1;')
  rates = ['1e-4', 1e-3, 1e-2]
  assert found == [
    {'optimizer.learning_rate': rate, 'seed': seed} for rate in rates for seed in ('-1', '0', '1')
  ]
  assert space.parse('model.channels=[8,16],[4]') == [
    {'model.channels': '[8,16]'},
    {'model.channels': '[4]'},
  ]
  assert space.parse('data.source=text:a;b=c') == [{'data.source': 'text:a', 'b': 'c'}]


@pytest.mark.parametrize(
  ('call', 'words'),
  [
    (lambda: space.zipit(RATES, SEEDS), 'spaces of 2, 3 trials'),
    (lambda: space.product(RATES, RATES), 'optimizer.learning_rate: is swept twice'),
    (lambda: space.logarithmic(0, 1, 3), 'takes bounds above 0'),
    (lambda: space.log_uniform(-1, 1, 3), 'takes bounds above 0'),
    (lambda: space.parse(' ; '), '--sweep= ; : is empty'),
    (lambda: space.parse('seed'), "'seed' has no values"),
    (lambda: space.parse('seed='), "'seed=' has no values"),
    (lambda: space.parse('=1'), "'=1' has no values"),
    (lambda: space.parse('seed=3..1'), '3..1 is empty'),
    (lambda: space.parse('optimizer.beta1=uniform(0,1)'), r'it takes uniform(LOW,HIGH,COUNT,SEED)'),
    (lambda: space.parse('optimizer.beta1=linear(0,1,2,3)'), r'it takes linear(LOW,HIGH,COUNT)'),
    (lambda: space.parse('seed=0..1;seed=2'), 'seed: is swept twice'),
  ],
)
def test_what_is_refused(call, words):
  with pytest.raises(UsageError) as error:
    call()
  assert words in str(error.value)
