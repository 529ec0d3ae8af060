import math
import statistics

import numpy as np
import pytest
from scipy import stats as scipy_stats

from bct_jax.evals import stats


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(
  "successes, n", [(0, 1), (0, 24), (1, 24), (12, 24), (24, 24), (199, 200)]
)
def test_wilson_is_scipys(successes, n, confidence):
  test = scipy_stats.binomtest(successes, n)
  want = test.proportion_ci(confidence, method="wilson")
  assert stats.wilson(successes, n, confidence) == pytest.approx(tuple(want))


def test_wilson_holds_the_share_and_the_ends_are_exact():
  assert stats.wilson(0, 50)[0] == 0.0
  assert stats.wilson(50, 50)[1] == 1.0
  # 24 of 24 must not read as "surely 1": the lower end is about 0.86.
  assert stats.wilson(24, 24)[0] == pytest.approx(24 / (24 + 1.959964**2))


def test_wilson_covers():
  rng = np.random.default_rng(0)
  for p in (0.05, 0.5, 0.97):
    draws = rng.binomial(100, p, size=2000)
    covered = np.mean([lo <= p <= hi for lo, hi in map(_wilson100, draws)])
    assert 0.92 < covered < 0.98


def _wilson100(k):
  return stats.wilson(int(k), 100)


@pytest.mark.parametrize(
  "args", [(1, 0), (-1, 5), (6, 5), (1, 5, 0.0), (1, 5, 1.0), (1, 5, 95)]
)
def test_wilson_rejects(args):
  with pytest.raises(ValueError):
    stats.wilson(*args)


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [3, 4, 5, 10, 31, 100])
def test_t_interval_is_scipys(n, confidence):
  values = np.random.default_rng(0).random(n)
  want = scipy_stats.t.interval(
    confidence, n - 1, np.mean(values), scipy_stats.sem(values)
  )
  low, high = stats.t_interval(values.tolist(), confidence)
  assert (low, high) == pytest.approx(tuple(want), rel=1e-12)
  assert (low + high) / 2 == pytest.approx(statistics.fmean(values))


@pytest.mark.parametrize("values", [[], [0.5], [0.5, 0.6]])
def test_t_interval_needs_three_seeds(values):
  with pytest.raises(ValueError, match=f"at least 3 seeds, not {len(values)}"):
    stats.t_interval(values)


def test_t_interval_rejects_nan():
  with pytest.raises(ValueError, match="finite"):
    stats.t_interval([0.1, math.nan, 0.2])
