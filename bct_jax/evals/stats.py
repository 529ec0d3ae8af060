"""Calculates intervals of rates, and across seeds.

It also finds when something that is looked at now and then begins to last.
"""

import math
import statistics
from collections.abc import Sequence

# Settings, or seeds, below which an interval says more of the formula than of
# them.
MIN_UNITS = 3


def wilson(
  successes: int, n: int, confidence: float = 0.95
) -> tuple[float, float]:
  """Calculates the score interval of a share.

  Unlike p +- z se it covers near 0 and 1 too. E. B. Wilson, "Probable
  inference, the law of succession, and statistical inference", J. Am. Stat.
  Assoc. 22 (1927), without continuity correction.

  Args:
    successes: from 0 to n.
    n: independent trials, at least 1. Several samples of one prompt are not
      independent: give one trial per prompt.
    confidence: coverage, between 0 and 1.

  Returns:
    (low, high) within [0, 1].

  Raises:
    ValueError: an argument is out of range.
  """
  _check_confidence(confidence)
  if n < 1 or not 0 <= successes <= n:
    raise ValueError(f"need 0 <= successes <= n and n >= 1: {successes} of {n}")
  return score_interval(successes / n, n, confidence)


def score_interval(
  share: float, n: float, confidence: float = 0.95
) -> tuple[float, float]:
  """Calculates Wilson's interval of a share at any number of trials.

  Args:
    share: in [0, 1].
    n: trials above 0. It need not be whole: samples of one prompt count for
      less than as many prompts would, see summary.clustered_interval.
    confidence: coverage, between 0 and 1.

  Raises:
    ValueError: an argument is out of range, or not a number.
  """
  if not (0 <= share <= 1 and 0 < n < math.inf):
    raise ValueError(f"need a share from 0 to 1 of n > 0: {share} of {n}")
  _check_confidence(confidence)
  z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
  center = share + z * z / (2 * n)
  half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
  scale = 1 + z * z / n
  # Exact at the ends, where rounding would leave 1e-17 or 1 - 1e-16.
  low = 0.0 if share == 0 else max((center - half) / scale, 0.0)
  return low, 1.0 if share == 1 else min((center + half) / scale, 1.0)


def t_interval(
  values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float]:
  """Calculates Student's t interval of the mean over runs that differ in seed.

  Returns:
    (low, high), in the unit of the values; not cut to [0, 1].

  Raises:
    ValueError: fewer than 3 values, where the interval says more about the
      formula than about the seeds, or a value that is not finite.
  """
  _check_confidence(confidence)
  n = len(values)
  if n < MIN_UNITS:
    raise ValueError(f"a t interval needs at least {MIN_UNITS} seeds, not {n}")
  if not all(map(math.isfinite, values)):
    raise ValueError(f"values must be finite: {list(values)}")
  half = t_quantile(n - 1, confidence) * statistics.stdev(values) / math.sqrt(n)
  mean = statistics.fmean(values)
  return mean - half, mean + half


def t_quantile(df: float, confidence: float) -> float:
  """Returns the quantile of Student's t that bounds a two-sided interval."""
  # A quarter of a second to import, which a report of one seed need not wait.
  from scipy import special

  return float(special.stdtrit(df, (1 + confidence) / 2))


def first_lasting(holds: Sequence[bool]) -> int | None:
  """Finds the index of the first of two in a row that hold.

  The last one counts alone, since nothing follows it. None: there is none.
  """
  for i, good in enumerate(holds):
    if good and (i + 1 == len(holds) or holds[i + 1]):
      return i
  return None


def _check_confidence(confidence: float) -> None:
  """Raises ValueError for what is no coverage."""
  if not 0 < confidence < 1:
    raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
