"""Intervals of paired rates: coverage counted exactly, and known values."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from bct_jax.evals.paired import (
  Pairs,
  count_pairs,
  difference_interval,
  independent_pairs,
  ratio_interval,
)


def coverage(n, before, ratio, gain, interval, truth):
  """The probability that an interval holds the truth, over all outcomes.

  A prompt that shows the behavior before keeps it so that the later rate is
  `ratio` times the earlier one; `gain` of the others take it up.
  """
  gained = gain * (1 - before)
  both = ratio * before - gained
  cells = [both, gained, before - both, 1 - before - gained]
  total = 0.0
  counts = (
    (a, b, c)
    for a, b, c in itertools.product(range(n + 1), repeat=3)
    if a + b + c <= n and (b == 0 or gained > 0)
  )
  for a, b, c in counts:
    weight = stats.multinomial.pmf([a, b, c, n - a - b - c], n, cells)
    if weight > 1e-7:
      found = interval(Pairs(a, b, c, n - a - b - c))
      total += weight * (found is None or found.low <= truth <= found.high)
  return total


@pytest.mark.parametrize("before", [1.0, 0.95])
@pytest.mark.parametrize("ratio", [0.6, 0.9, 0.94, 0.97, 0.99, 1.0])
def test_retention_covers_at_32_prompts(before, ratio):
  assert coverage(32, before, ratio, 0.0, ratio_interval, ratio) >= 0.93


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.9), (0.8, 0.7)])
def test_intervals_cover_where_prompts_go_both_ways(before, after):
  ratio = after / before
  assert coverage(16, before, ratio, 0.3, ratio_interval, ratio) >= 0.92
  wanted = after - before
  assert coverage(16, before, ratio, 0.3, difference_interval, wanted) >= 0.92


def test_32_of_32_is_no_point():
  """A percentile bootstrap gave [1, 1] here."""
  found = ratio_interval(Pairs(32, 0, 0, 0))
  assert found is not None
  assert found.value == 1
  assert found.low == pytest.approx(32 / (32 + stats.norm.ppf(0.975) ** 2))
  assert found.high == pytest.approx(1 / found.low)
  change = difference_interval(Pairs(32, 0, 0, 0))
  assert change.low == pytest.approx(-change.high) and change.high > 0.1


def test_where_all_held_before_the_lower_bound_is_wilsons():
  """The upper one is higher: prompts that did not show it before may now."""
  for kept in (1, 10, 29):
    found = ratio_interval(Pairs(kept, 0, 32 - kept, 0))
    wanted = stats.binomtest(kept, 32).proportion_ci(0.95, "wilson")
    assert found.low == pytest.approx(wanted.low, abs=1e-9)
    assert found.high >= wanted.high - 1e-9


def test_at_a_difference_of_0_the_statistic_is_mcnemars():
  pairs = Pairs(20, 4, 12, 14)
  z = (4 - 12) / math.sqrt(4 + 12)
  level = 2 * stats.norm.cdf(abs(z)) - 1  # the level at which 0 is the bound
  found = difference_interval(pairs, level)
  assert found.high == pytest.approx(0, abs=1e-9)


def test_ends():
  assert ratio_interval(Pairs(0, 3, 0, 29)) is None
  gone = ratio_interval(Pairs(0, 0, 32, 0))
  assert gone.value == gone.low == 0 and 0 < gone.high < 0.15
  assert difference_interval(Pairs(0, 0, 8, 0)).low == -1
  assert difference_interval(Pairs(0, 8, 0, 0)).high == 1
  with pytest.raises(ValueError, match="same prompts"):
    count_pairs([True], [])
  with pytest.raises(ValueError, match="True or False, not nan"):
    count_pairs([True, math.nan], [True, True])
  with pytest.raises(ValueError, match="confidence"):
    difference_interval(Pairs(1, 0, 0, 0), 1.0)


def test_counts():
  rng = np.random.default_rng(0)
  after, before = rng.random(50) < 0.5, rng.random(50) < 0.5
  pairs = count_pairs(list(after), list(before))
  assert pairs.n == 50
  assert pairs.both + pairs.after_only == after.sum()
  assert pairs.both + pairs.before_only == before.sum()


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("kept", [0.8, 0.97])
def test_intervals_cover_where_prompts_of_a_cue_go_together(size, kept):
  """Prompt by prompt they cover 75% with 5 prompts of each of 30 cues."""
  rng = np.random.default_rng(0)
  grouped = wide = 0
  rounds = 400
  groups = np.repeat(np.arange(30), size).tolist()
  before = [True] * (30 * size)
  for _ in range(rounds):
    # Of ten prompts seven go with their cue, the others each by itself.
    of_cue = np.repeat(rng.random(30) < kept, size)
    together = rng.random(30 * size) < 0.7
    alone = rng.random(30 * size) < kept
    after = np.where(together, of_cue, alone).tolist()
    by_cue = independent_pairs(after, before, groups)
    assert by_cue.n <= 30 * size
    found = difference_interval(by_cue)
    grouped += found.low <= kept - 1 <= found.high
    found = ratio_interval(independent_pairs(after, before, groups, ratio=kept))
    wide += found.low <= kept <= found.high
  assert grouped / rounds >= 0.93 and wide / rounds >= 0.93


def test_a_cue_whose_prompts_all_agree_counts_once():
  after, before = [True] * 40, [True] * 40
  pairs = independent_pairs(after, before, [i // 4 for i in range(40)])
  assert pairs.both == pairs.n < 10  # fewer than the cues, by Student
  assert independent_pairs(after, before, [*range(40)]) == Pairs(40, 0, 0, 0)
  alone = independent_pairs(after, before, ["one"] * 40)
  assert alone.n == 1
