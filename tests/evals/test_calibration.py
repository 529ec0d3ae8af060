"""Errors of a scorer, and rates corrected for them."""

import math
import random

import pytest

from bct_jax.evals.calibration import (
  Errors,
  Labelled,
  Share,
  measure_agreement,
  measure_errors,
)


def answers(*counts):
  """Answers by (scorer, person, how many, weight)."""
  return [Labelled(w, s, p) for s, p, n, w in counts for _ in range(n)]


def test_kappa_is_that_of_the_literature():
  # Cohen 1960, table 1, of proportions in hundredths: kappa 0.492.
  table = [[88, 14, 18], [10, 40, 10], [2, 6, 12]]
  rows = answers(*(
    ("abc"[i], "abc"[j], n, 1.0)
    for i, line in enumerate(table)
    for j, n in enumerate(line)
  ))  # fmt: skip
  found = measure_agreement(rows)
  assert found.n == 200 and found.share.value == 0.7
  assert found.kappa == pytest.approx(0.492, abs=5e-4)
  # His standard error, 0.055, with the share's own bounds.
  low, high = found.kappa_ci
  assert (high - low) / 2 == pytest.approx(1.96 * 0.0549, rel=0.03)
  same = measure_agreement(answers(("a", "a", 9, 1.0)))
  assert same.kappa is None and same.share.value == 1


def test_weights_undo_what_strata_do_to_errors():
  # Of 1,000 answers 900 are b by the scorer; 10 of them are a. Of each label 50
  # were looked at.
  rows = answers(
    ("a", "a", 45, 2.0),
    ("a", "b", 5, 2.0),
    ("b", "b", 49, 18.0),
    ("b", "a", 1, 18.0),
  )
  errors = measure_errors(rows, "a")
  assert errors.sensitivity.value == 90 / 108  # not 45 / 46
  assert errors.specificity.value == 882 / 892
  assert errors.sensitivity.n == pytest.approx(108**2 / (45 * 4 + 18**2))
  assert measure_errors(answers(("a", "b", 3, 1.0)), "a") is None


def share(value, n):
  return Share(value, n, (0.0, 1.0))


def test_a_scorer_without_errors_is_corrected_by_nothing():
  errors = Errors(share(1.0, 1e9), share(1.0, 1e9))
  found = errors.correct(0.3, 100)
  assert found.value == pytest.approx(0.3)
  # Agresti and Coull's interval.
  z = 1.959964
  p, n = (30 + z * z / 2) / (100 + z * z), 100 + z * z
  half = z * math.sqrt(p * (1 - p) / n)
  assert found.ci == pytest.approx((p - half, p + half), abs=1e-6)


def test_the_estimate_is_rogan_and_gladens():
  errors = Errors(share(0.9, 100), share(0.8, 100))
  assert errors.correct(0.2 * 0.9 + 0.8 * 0.2, 500).value == pytest.approx(0.2)
  assert errors.correct(0.05, 50).value == 0  # cut
  assert Errors(share(0.5, 20), share(0.5, 20)).correct(0.5, 50) is None
  assert Errors(share(0.2, 20), share(0.3, 20)).correct(0.5, 50) is None


@pytest.mark.parametrize(
  "rate, se, sp, n, counted",
  [(0.05, 0.9, 0.98, 64, 50), (0.5, 0.8, 0.9, 64, 50), (0.9, 0.95, 0.8, 32, 30),
   (0.2, 0.99, 0.99, 200, 40)],
)  # fmt: skip
def test_intervals_cover_the_rate(rate, se, sp, n, counted):
  rng, covered, draws = random.Random(0), 0, 2000

  def count(p, size):
    return sum(rng.random() < p for _ in range(size)) / size

  for _ in range(draws):
    seen = count(rate * se + (1 - rate) * (1 - sp), n)
    errors = Errors(
      share(count(se, counted), counted), share(count(sp, counted), counted)
    )
    found = errors.correct(seen, n)
    covered += found is None or found.ci[0] <= rate <= found.ci[1]
  assert covered / draws >= 0.94
