"""Calculates a rate over seeds, cue entities, prompts and samples."""

import math
from collections.abc import Hashable, Iterable

import numpy as np

from bct_jax.evals.stats import MIN_UNITS, score_interval, t_quantile


def hierarchical_interval(
  observations: Iterable[tuple[Hashable, Hashable, Hashable, float]],
  confidence: float = 0.95,
) -> tuple[float, float, float]:
  """Calculates a rate that is to hold for further seeds and cue entities.

  Every seed counts alike, within a seed every prompt, and within a prompt every
  sample. Seeds answer the same prompts, so cue entities are crossed with seeds
  and not nested in them. The interval is Wilson's at the number of trials with
  the variance of `_rate_variance`, cut by Student's quantile for the smaller
  number of clusters (E. Korn and B. Graubard, Survey Methodology 24, 1998).
  Where all agree there still is an interval: 5 seeds leave 0.72 to 1. It is
  never narrower than for as many answers that are independent.

  There is no bootstrap in it. One that resamples seeds, entities, prompts and
  samples in turn has no width where all agree, and covers about 80% with 5
  seeds (simulated in tests/evals/test_hierarchy.py, as is what this covers).

  Args:
    observations: (seed, cue entity, prompt, value) of each completion; the
      value is 0 or 1, or a rate between. A prompt without an entity is its own.
      Entities and prompts that recur under several seeds have the same names.
    confidence: coverage, between 0 and 1.

  Returns:
    (rate, low, high).

  Raises:
    ValueError: fewer than 3 seeds or 3 entities, or a value that is no number
      from 0 to 1.
  """
  observations = list(observations)
  seeds, entities, weights, values = _cells(observations)
  for what, names in (("seeds", seeds), ("cue entities", entities)):
    if len(set(names)) < MIN_UNITS:
      raise ValueError(
        f"an interval over {what} needs at least {MIN_UNITS} of them, not "
        f"{len(set(names))}"
      )
  # Exactly 1 where all values are.
  rate = math.fsum(weights * values) / math.fsum(weights)
  residuals = weights * (values - rate)
  # By chance seeds may agree more than answers that depend on nothing would.
  variance = max(
    _rate_variance(rate, residuals, seeds, entities),
    rate * (1 - rate) / len(observations),
  )
  count = len(set(seeds))
  df = min(count, len(set(entities))) - 1
  # As wide as Student's interval of this variance.
  wider = t_quantile(df, confidence) / t_quantile(np.inf, confidence)
  # The same seen as rate -> 0 or 1, where both terms of the ratio vanish.
  trials = count * (count - 1) / wider**2
  if 0 < rate < 1:
    trials = max(rate * (1 - rate) / (variance * wider**2), 1.0)
  return rate, *score_interval(rate, trials, confidence)


def _cells(observations):
  """Averages the samples of each seed's prompts.

  Returns:
    Seed and entity of each cell, its weight (together 1), and its mean.
  """
  cells: dict[tuple[Hashable, Hashable, Hashable], list[float]] = {}
  for seed, entity, prompt, value in observations:
    if not 0 <= value <= 1:
      raise ValueError(f"{value} is no number from 0 to 1")
    cells.setdefault((seed, entity, prompt), []).append(float(value))
  seeds = [seed for seed, _, _ in cells]
  prompts = {seed: seeds.count(seed) for seed in set(seeds)}
  weights = np.array([1 / prompts[seed] / len(prompts) for seed in seeds])
  values = np.array([np.mean(samples) for samples in cells.values()])
  return seeds, [entity for _, entity, _ in cells], weights, values


def _rate_variance(rate: float, residuals, seeds, entities) -> float:
  """Calculates the variance of a rate over seeds and cue entities.

  It is that of two-way clusters: of seeds, plus of entities, minus of the cells
  of both (C. Cameron, J. Gelbach and D. Miller, "Robust inference with multiway
  clustering", J. Bus. Econ. Stat. 29, 2011), and never below that of seeds. It
  has in it what prompts and samples add.

  A few seeds that agree say little about how far seeds are apart: where a rate
  is near 0 or 1 in most seeds and not in some, the plain variance covers 85 to
  90%. So the variance of seeds has one seed more in it, of which nothing but
  the mean is known. Its share is rate (1 - rate), the most there can be, times
  |1 - 2 rate|, since at one half the distribution of seeds leans to no side.

  Args:
    rate: over all cells.
    residuals: see `_cluster_variance`.
    seeds, entities: of each cell.
  """
  pairs = [*zip(seeds, entities, strict=True)]
  by_seed, by_entity, by_pair = (
    _cluster_variance(residuals, names) for names in (seeds, entities, pairs)
  )
  count = len(set(seeds))
  # The one seed more.
  by_seed += abs(1 - 2 * rate) * rate * (1 - rate) / (count * (count - 1))
  return by_seed + max(by_entity - by_pair, 0.0)


def _cluster_variance(residuals, names) -> float:
  """Calculates the variance of a mean whose clusters are independent.

  Args:
    residuals: weight times deviation from the mean, of each cell.
    names: of each cell's cluster.
  """
  sums: dict[Hashable, float] = {}
  for name, residual in zip(names, residuals, strict=True):
    sums[name] = sums.get(name, 0.0) + residual
  squares = np.square([*sums.values()])
  return float(squares.sum() * len(squares) / max(len(squares) - 1, 1))
