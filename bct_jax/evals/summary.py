"""Summarizes several runs: across samples, seeds, settings and learning rates.

What removal costs is in `removal.py`, rates over seeds and prompts that are
crossed in `hierarchy.py`; their functions are here too.

It is pure Python and numpy, over plain values, so that a notebook can use it on
what `bct_jax.load_results` gives.
"""

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from bct_jax.evals.hierarchy import hierarchical_interval
from bct_jax.evals.removal import (
  auc_of_noise,
  pareto_hull,
  removal_at,
  robustness_auc,
)
from bct_jax.evals.stats import (
  MIN_UNITS,
  first_lasting,
  score_interval,
  t_interval,
)

__all__ = [
  "MIN_UNITS",
  "Bracket",
  "Comparison",
  "auc_of_noise",
  "bracket",
  "clustered_interval",
  "hierarchical_interval",
  "learning_rate_law",
  "mean_over_settings",
  "median_step",
  "pareto_hull",
  "removal_at",
  "robustness_auc",
  "survival",
]


def clustered_interval(
  prompts: Sequence[Sequence[float]], confidence: float = 0.95
) -> tuple[float, float, float]:
  """Calculates a rate over several samples of each prompt, with its interval.

  Samples of one prompt are not independent. The standard error is that of a
  mean over clusters (Miller 2024, arXiv 2411.00640, section 2.2). The interval
  is Wilson's at the number of independent trials that would have this error
  (E. Korn and B. Graubard, "Confidence intervals for proportions with small
  expected number of positive counts", Survey Methodology 24, 1998), so that it
  stays within [0, 1]. Where all samples agree, that number of trials is the
  number of prompts.

  Args:
    prompts: for each prompt, 0 or 1 for each of its samples.
    confidence: coverage, between 0 and 1.

  Returns:
    (rate, low, high).

  Raises:
    ValueError: no prompt, a prompt without samples, or a value not in [0, 1].
  """
  sizes = np.array([len(p) for p in prompts])
  if not sizes.size or not sizes.all():
    raise ValueError("every prompt needs at least one sample")
  values = np.concatenate([np.asarray(p, float) for p in prompts])
  if not ((values >= 0) & (values <= 1)).all():
    raise ValueError("values must be from 0 to 1")
  total, count = values.size, sizes.size
  rate = float(values.mean())
  sums = np.array([sum(p) for p in prompts]) - rate * sizes
  variance = float((sums**2).sum()) / total**2
  n = float(count)
  if variance > 0:
    # No fewer trials than 1, no more than there are samples.
    n = min(max(rate * (1 - rate) / variance, 1.0), float(total))
  return rate, *score_interval(rate, n, confidence)


def mean_over_settings(
  groups: Mapping[str, Sequence[float]], confidence: float = 0.95
) -> tuple[float, float, float]:
  """Calculates the mean over settings of the mean over their seeds.

  The settings are the units: they are taken for a sample of all that could be
  asked about, and what seeds add is part of how far their means are apart. The
  interval is Student's of these means, with one degree of freedom less than
  there are settings. A bootstrap of so few units covers too little: 57% with 2
  settings and 71% with 3, where 95% was meant.

  Args:
    groups: setting -> a number for each seed.
    confidence: coverage, between 0 and 1.

  Returns:
    (mean, low, high), in the unit of the numbers.

  Raises:
    ValueError: fewer than 3 settings, or one without a finite value.
  """
  for name, values in groups.items():
    if not values or not all(map(math.isfinite, values)):
      raise ValueError(f"{name}: a finite number for each seed is needed")
  if len(groups) < MIN_UNITS:
    raise ValueError(
      f"an interval needs at least {MIN_UNITS} settings, not {len(groups)}"
    )
  means = [statistics.fmean(values) for values in groups.values()]
  return statistics.fmean(means), *t_interval(means, confidence)


# --- when it happens ----------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Bracket:
  """Holds when an event happened in one run: in the steps (after, until].

  Attributes:
    after: the last step at which it had not happened.
    until: the first step at which it had happened; None where it never did
      (right-censored).
  """

  after: float
  until: float | None

  def __post_init__(self):
    """Raises ValueError if the bracket is empty, or an end is no step."""
    if math.isnan(self.after):
      raise ValueError(f"a bracket begins at a step: {self}")
    if self.until is not None and not self.after < self.until:
      raise ValueError(f"a bracket needs after < until: {self}")


def bracket(steps: Sequence[int], happened: int | None) -> Bracket:
  """Makes the bracket of an event that is seen at evals only.

  Args:
    steps: of the evals, ascending.
    happened: the first of `steps` at which the event had happened, or None.

  Raises:
    ValueError: `happened` is none of the steps, or is the first of them, before
      which nothing is known.
  """
  if happened is None:
    return Bracket(steps[-1], None)
  at = list(steps).index(happened)
  if at == 0:
    raise ValueError(f"step {happened} is the first eval: nothing before it")
  return Bracket(steps[at - 1], happened)


def survival(brackets: Sequence[Bracket]) -> list[tuple[float, float]]:
  """Estimates the share of runs in which an event has not happened by a step.

  This is the nonparametric maximum likelihood estimate for interval-censored
  times, by self-consistency: B. Turnbull, "The empirical distribution
  function with arbitrarily grouped, censored and truncated data", J. R. Stat.
  Soc. B 38 (1976). Where brackets do not overlap it is the estimate of Kaplan
  and Meier (1958). The curve falls at the ends of brackets: when within a
  bracket the event happened is not known.

  Returns:
    (step, share), ascending in steps, from the first at which the share falls.

  Raises:
    ValueError: there are no brackets.
  """
  if not brackets:
    raise ValueError("at least one run is needed")
  lows = sorted({b.after for b in brackets})
  ends = sorted({math.inf if b.until is None else b.until for b in brackets})
  # Innermost intervals: a lower end with an upper end as its next neighbour.
  cells = []
  for end in ends:
    low = max((x for x in lows if x < end), default=None)
    if low is not None and not any(low < e < end for e in ends):
      cells.append((low, end))
  holds = np.array(
    [
      [b.after <= low and end <= (b.until or math.inf) for low, end in cells]
      for b in brackets
    ],
    float,
  )
  mass = np.full(len(cells), 1 / len(cells))
  for _ in range(10_000):
    shares = holds * mass
    new = (shares / shares.sum(axis=1, keepdims=True)).mean(axis=0)
    done = np.abs(new - mass).max() < 1e-12
    mass = new
    if done:
      break
  remainders = 1 - np.cumsum(mass)
  return [
    (end, max(float(share), 0.0))
    for (_, end), share in zip(cells, remainders, strict=True)
    if math.isfinite(end)
  ]


def median_step(curve: Sequence[tuple[float, float]]) -> float | None:
  """Finds the first step after which at most half of the runs remain.

  Args:
    curve: what `survival` gives.

  Returns:
    The step; None if more than half remain to the end.
  """
  return next((s for s, share in curve if share <= 0.5 + 1e-9), None)


# --- the learning-rate law ----------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Compares a learning rate that removed the behavior with a lower one.

  Attributes:
    lr, steps: the higher rate and S, the steps after which the behavior was
      gone.
    lower: the lower rate, lr / N.
    budget: 6 N S, the steps that the lower rate has to remove it too.
    crossed: the step at which the lower rate had removed it; None if never.
    trained: steps that the arm of the lower rate was trained for.
    holds: False if the behavior was gone within the budget, True if the arm was
      trained for the budget and the behavior was not gone, None if the arm was
      not trained for so long.
  """

  lr: float
  steps: int
  lower: float
  budget: float
  crossed: int | None
  trained: int
  holds: bool | None


def learning_rate_law(
  curves: Mapping[float, Sequence[tuple[int, float, bool]]],
  factor: float = 6.0,
) -> list[Comparison]:
  """Checks whether a lower learning rate fails where a higher one succeeds.

  The claim: a behavior that lr removes in S steps is not removed by lr / N in
  6 N S steps, though N S would do if only the product counted (the "learning
  rate" experiments of the field, with N from 6 to 30). A behavior is removed
  if, at two evals in a row or at the last one, its initial rate is below 0.5
  and the model is intact: one that is broken has not been changed.

  Args:
    curves: learning rate -> (step, initial rate, whether the model is intact)
      of its evals, ascending.
    factor: the 6.

  Returns:
    One comparison for each pair whose higher rate removed the behavior.

  Raises:
    ValueError: a curve is empty or not ascending, a learning rate or the factor
      not positive, a rate no number from 0 to 1.
  """
  if not 0 < factor < math.inf:
    raise ValueError(f"factor = {factor}: must be positive")
  for lr, curve in curves.items():
    steps = [s for s, _, _ in curve]
    ascending = all(a < b for a, b in itertools.pairwise([-1, *steps]))
    if not 0 < lr < math.inf or not curve or not ascending:
      raise ValueError(f"lr {lr}: needs evals in ascending steps: {steps}")
    for step, rate, _ in curve:
      if not 0 <= rate <= 1:
        raise ValueError(f"lr {lr}, step {step}: {rate} is no rate")
  removals = {lr: _removal_step(curve) for lr, curve in curves.items()}
  out = []
  for lr, steps in sorted(removals.items(), reverse=True):
    for lower in sorted((x for x in curves if x < lr), reverse=True):
      if steps is None or steps == 0:
        continue
      budget = factor * lr / lower * steps
      crossed, trained = removals[lower], curves[lower][-1][0]
      within = crossed is not None and crossed <= budget
      holds = False if within else True if trained >= budget else None
      out.append(Comparison(lr, steps, lower, budget, crossed, trained, holds))
  return out


def _removal_step(curve: Sequence[tuple[int, float, bool]]) -> int | None:
  """Finds the step of the removal; None if there is none."""
  at = first_lasting([rate < 0.5 and intact for _, rate, intact in curve])
  return None if at is None else curve[at][0]
