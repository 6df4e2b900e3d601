"""Intervals against scipy, and verdicts at the edges of tolerances."""

import math

import numpy as np
import pytest
from scipy import stats

from aigc_jax.studies import judging
from aigc_jax.studies.study import Reference


@pytest.mark.parametrize('degrees', [*range(1, 41), 60, 120, 1000])
def test_quantiles_are_those_of_students_distribution(degrees):
  # the table has four decimals
  assert judging.t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), abs=1e-4)


@pytest.mark.parametrize('count', [2, 3, 10, 50])
def test_interval_is_scipys(count):
  values = np.random.default_rng(count).normal(5.0, 2.0, count).tolist()
  low, high = stats.t.interval(0.95, count - 1, np.mean(values), stats.sem(values))
  assert judging.half_width(values) == pytest.approx((high - low) / 2, rel=1e-4)


def test_one_value_has_no_interval():
  assert judging.half_width([1.0]) is None


@pytest.mark.parametrize(
  ('mean', 'side', 'passes'),
  [
    (1.90, 'within', True),
    (2.10, 'within', True),
    (1.89, 'within', False),
    (2.11, 'within', False),
    (1.90, 'at least', True),
    (9.00, 'at least', True),
    (1.89, 'at least', False),
    (2.10, 'at most', True),
    (-9.0, 'at most', True),
    (2.11, 'at most', False),
    (math.nan, 'within', False),
    (math.inf, 'at least', False),
    (-math.inf, 'at most', False),
  ],
)
def test_tolerances_are_of_one_side_or_both(mean, side, passes):
  assert judging.holds(mean, 2.0, 0.1, side) is passes


@pytest.mark.parametrize('side', ['within', 'at least', 'at most'])
def test_no_tolerance_passes_the_value_itself(side):
  assert judging.holds(sum([0.1] * 10) / 10, 0.1, 0.0, side)


def test_verdicts():
  reference = Reference(1.0, 'somewhere', 0.5)
  verdict = lambda values, failed=(), held=1.0, quick=False: judging.verdict_of(
    values, list(failed), reference, held, quick
  )
  assert verdict([0.9, 1.3]) == judging.PASS
  assert verdict([0.9, 3.3]) == judging.FAIL
  assert verdict([1.0], failed=['seed 1: not finite']) == judging.FAIL  # what is left would pass
  assert verdict([]) == verdict([1.0], held=None) == judging.FAIL
  assert verdict([9.0], quick=True) == judging.UNJUDGED
  assert judging.verdict_of([1.0], [], None, None, False) == judging.NOTHING
  assert judging.verdict_of([1.0], ['seed 1: no'], None, None, False) == judging.FAIL
