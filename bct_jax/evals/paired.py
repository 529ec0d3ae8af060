"""Compares two paired rates: their ratio and their difference, with intervals.

Both intervals hold what a score test does not reject, so they do not collapse
to a point where every pair agrees: 32 of 32 kept prompts leave a retention
between 0.89 and 1.12 open.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Hashable, Sequence

from bct_jax.evals.stats import t_quantile


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Counts of prompts by what the two evaluations say of them.

  Attributes:
    both: it held at both.
    after_only: it holds at the later one alone.
    before_only: it held at the earlier one alone.
    neither: it held at neither.

  Counts of `independent_pairs` are no whole numbers.
  """

  both: float
  after_only: float
  before_only: float
  neither: float

  @property
  def n(self) -> float:
    """Returns the number of prompts."""
    return self.both + self.after_only + self.before_only + self.neither


@dataclasses.dataclass(frozen=True)
class Interval:
  """Holds an estimate and its interval; `high` may be infinite for a ratio."""

  value: float
  low: float
  high: float


def count_pairs(after: Sequence[bool], before: Sequence[bool]) -> Pairs:
  """Counts prompts by their two outcomes.

  Args:
    after: for each prompt, whether it holds at the later evaluation.
    before: the same prompts in the same order, at the earlier one.

  Raises:
    ValueError: the lengths differ, there is no prompt, or an outcome is not
      True or False (nor 1 or 0).
  """
  if bad := [x for x in (*after, *before) if x not in (0, 1)]:
    raise ValueError(f"an outcome is True or False, not {bad[0]!r}")
  if len(after) != len(before) or not after:
    raise ValueError(
      f"need the same prompts, at least 1: {len(after)} after, "
      f"{len(before)} before"
    )
  outcomes = list(zip(map(bool, after), map(bool, before), strict=True))
  return Pairs(
    both=outcomes.count((True, True)),
    after_only=outcomes.count((True, False)),
    before_only=outcomes.count((False, True)),
    neither=outcomes.count((False, False)),
  )


def independent_pairs(
  after: Sequence[bool],
  before: Sequence[bool],
  groups: Sequence[Hashable],
  confidence: float = 0.95,
  ratio: float = 1.0,
) -> Pairs:
  """Counts how many independent prompts would say as much as these.

  Prompts of one group, such as of one cue entity, go the same way more often
  than others do. All counts are divided by the design effect: the variance of
  after - ratio x before over groups, as a share of that over prompts (J. Rao
  and A. Scott, "A simple method for the analysis of clustered binary data",
  Biometrics 48, 1992), and never below 1. Where all prompts agree, a group
  counts as one prompt. Few groups are cut by the square of Student's quantile
  over the normal one (E. Korn and B. Graubard, Survey Methodology 24, 1998).
  Where every group is one prompt, these are the plain counts.

  Args:
    after, before: see count_pairs.
    groups: for each prompt, the name of its group.
    confidence: of the interval that the counts are for.
    ratio: of the later to the earlier rate, which the interval is about; 1 for
      their difference.

  Returns:
    The counts, of at least one prompt.

  Raises:
    ValueError: see count_pairs.
  """
  pairs = count_pairs(after, before)
  mean = (pairs.both + pairs.after_only) - ratio * (
    pairs.both + pairs.before_only
  )
  sums: dict[Hashable, float] = {}
  spread = 0.0
  for now, then, group in zip(after, before, groups, strict=True):
    residual = now - ratio * then - mean / pairs.n
    sums[group] = sums.get(group, 0.0) + residual
    spread += residual**2
  count = len(sums)
  if count == pairs.n:
    return pairs
  share = count / pairs.n
  if spread > 1e-9:
    share = min(1.0, spread / max(sum(x * x for x in sums.values()), 1e-9))
  normal = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
  wider = t_quantile(count - 1, confidence) / normal if count > 1 else math.inf
  share = max(share / wider**2, 1 / pairs.n)
  return Pairs(*(share * x for x in dataclasses.astuple(pairs)))


def ratio_interval(pairs: Pairs, confidence: float = 0.95) -> Interval | None:
  """Estimates the later rate over the earlier one.

  Inverts the score test of H0: ratio = r, with the cell probabilities that are
  most likely under H0: N.-S. Tang, M.-L. Tang and I. S. F. Chan, "On tests of
  equivalence via non-unity relative risk for matched-pair design", Statistics
  in Medicine 22 (2003); J. Nam and W. Blackwelder, the same journal 21 (2002).
  Coverage at n = 32 is at least 0.94 for ratios from 0.5 to 1
  (tests/evals/test_paired.py counts it exactly).

  Args:
    pairs: counts of independent prompts.
    confidence: nominal coverage, between 0 and 1.

  Returns:
    The ratio with its interval, in units of the earlier rate; None if the
    earlier rate is 0, where there is no ratio.

  Raises:
    ValueError: the confidence is out of range, or there is no prompt.
  """
  z = _quantile(confidence, pairs)
  after = pairs.both + pairs.after_only
  before = pairs.both + pairs.before_only
  if before == 0:
    return None
  ratio = after / before

  def score(r: float) -> float:
    """Returns the signed score statistic of H0: after = r before."""
    a = pairs.n * (1 + r)
    b = before * r * r - (after + 2 * pairs.before_only)
    shown = pairs.n - pairs.neither  # prompts with either outcome
    c = pairs.before_only * (1 - r) * shown / pairs.n
    fallen = (-b + math.sqrt(max(b * b - 4 * a * c, 0.0))) / (2 * a)
    variance = pairs.n * (1 + r) * fallen + shown * (r - 1)
    return _standardize(after - r * before, variance)

  low = 0.0 if after == 0 else _solve(score, z, 0.0, ratio)
  top = max(2 * ratio, 1.0)
  while score(top) > -z and math.isfinite(top):
    top *= 2
  high = math.inf if math.isinf(top) else _solve(score, -z, ratio, top)
  return Interval(ratio, low, high)


def difference_interval(pairs: Pairs, confidence: float = 0.95) -> Interval:
  """Estimates the later rate minus the earlier one.

  Inverts the score test of H0: difference = d: T. Tango, "Equivalence test and
  confidence interval for the difference in proportions for the paired-sample
  design", Statistics in Medicine 17 (1998).

  Args:
    pairs: counts of independent prompts.
    confidence: nominal coverage, between 0 and 1.

  Returns:
    The difference of the rates with its interval, within [-1, 1].

  Raises:
    ValueError: the confidence is out of range, or there is no prompt.
  """
  z = _quantile(confidence, pairs)
  n, gained, fallen = pairs.n, pairs.after_only, pairs.before_only
  difference = (gained - fallen) / n

  def score(d: float) -> float:
    """Returns the signed score statistic of H0: after - before = d."""
    b = -gained - fallen + (2 * n - gained + fallen) * d
    c = -fallen * d * (1 - d)
    cell = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * cell + d * (1 - d))
    return _standardize(gained - fallen - n * d, variance)

  low = -1.0 if difference == -1 else _solve(score, z, -1.0, difference)
  high = 1.0 if difference == 1 else _solve(score, -z, difference, 1.0)
  return Interval(difference, low, high)


def _quantile(confidence: float, pairs: Pairs) -> float:
  if not 0 < confidence < 1:
    raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
  if pairs.n < 1:
    raise ValueError("at least 1 prompt is needed")
  return statistics.NormalDist().inv_cdf((1 + confidence) / 2)


def _standardize(excess: float, variance: float) -> float:
  """Returns excess / sd, bounded, so that a root can be bracketed."""
  if abs(excess) < 1e-12:
    return 0.0
  bound = 1e6
  if variance <= 0:
    return math.copysign(bound, excess)
  return max(-bound, min(bound, excess / math.sqrt(variance)))


def _solve(
  score: Callable[[float], float], target: float, low: float, high: float
) -> float:
  """Finds where a falling score meets its target; an end if it does not."""
  if score(low) <= target:
    return low
  if score(high) >= target:
    return high
  from scipy import optimize  # a report that only reads does not wait for it

  root = optimize.brentq(lambda x: score(x) - target, low, high)
  assert isinstance(root, float)
  return root
