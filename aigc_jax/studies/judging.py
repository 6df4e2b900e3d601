"""From the values of a measure to a verdict: mean, interval, pass or fail."""

import math
import statistics
from typing import Any, NamedTuple

PASS, FAIL, UNJUDGED, SKIPPED, NOTHING = 'pass', 'FAIL', 'not judged', 'skipped', ''

# The quantile 0.975 of Student's t distribution with 1 to 30 degrees of freedom
T = (
  *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
  *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
  *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


class Line(NamedTuple):
  """One line of the table: a measure of an arm beside one reference."""

  arm: Any  # study.Arm
  measure: Any  # study.Measure
  values: list  # of the runs that came to their end, by seed
  failed: list  # why each of the others did not
  reference: Any  # study.Reference, or None
  held: float | None  # what the mean is held against
  verdict: str
  seconds: float  # that the arm took, training and measuring


def t_quantile(degrees):
  """t with P(T <= t) = 0.975: the table, and above it an expansion about the normal quantile.

  Abramowitz & Stegun 26.7.5, two terms: right to 1e-4 from 31 degrees on.
  """
  if degrees <= len(T):
    return T[degrees - 1]
  z = statistics.NormalDist().inv_cdf(0.975)
  return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def half_width(values):
  """Half of the 95 % interval of the mean, t s / sqrt(n), s over n - 1; None for fewer than two values."""
  if len(values) < 2:
    return None
  return t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def holds(mean, value, tolerance, side):
  """Whether a mean passes; what is not finite never does. A last digit that rounding took is given back."""
  slack = tolerance + 1e-9 * max(1.0, abs(value))
  if not math.isfinite(mean) or not math.isfinite(value):
    return False
  return {'within': abs(mean - value), 'at least': value - mean, 'at most': mean - value}[side] <= slack


def verdict_of(values, failed, reference, held, quick):
  """The verdict on the values of a line: a run that failed fails it."""
  if reference is None:
    return FAIL if failed and not quick else NOTHING
  if quick:
    return UNJUDGED
  if failed or not values or held is None:
    return FAIL
  return PASS if holds(statistics.fmean(values), held, reference.tolerance, reference.side) else FAIL
