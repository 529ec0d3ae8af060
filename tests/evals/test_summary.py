"""What several runs say together, against scipy and published definitions."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from scipy import stats as scipy_stats

from bct_jax.evals import stats, summary
from bct_jax.evals.summary import Bracket

# --- several samples of a prompt ----------------------------------------------


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_one_sample_each_is_wilson(hits):
  rate, low, high = summary.clustered_interval([[float(h)] for h in hits])
  want = stats.wilson(sum(hits), len(hits))
  assert rate == pytest.approx(statistics.fmean(hits))
  assert (low, high) == pytest.approx(want, abs=1e-9)


@pytest.mark.parametrize("prompts", [3, 7, 32])
def test_an_interval_ends_at_0_and_1_exactly(prompts):
  assert summary.clustered_interval([[0, 0]] * prompts)[:2] == (0, 0)
  assert summary.clustered_interval([[1, 1]] * prompts)[::2] == (1, 1)


def test_copies_of_a_sample_add_nothing():
  hits = [1, 1, 1, 0, 1, 0, 1, 1]
  once = summary.clustered_interval([[h] for h in hits])
  many = summary.clustered_interval([[h] * 50 for h in hits])
  assert many == pytest.approx(once, abs=1e-12)


def test_independent_samples_count_in_full():
  rng = np.random.default_rng(0)
  draws = rng.binomial(1, 0.3, size=(500, 4))
  rate, low, high = summary.clustered_interval(draws.tolist())
  want = stats.wilson(int(draws.sum()), draws.size)
  assert (low, high) == pytest.approx(want, abs=0.01)


def test_clustered_interval_covers():
  rng, covered = np.random.default_rng(1), 0
  for _ in range(600):
    rates = rng.beta(2, 2, size=40)  # prompts differ: mean 0.5
    draws = rng.binomial(1, rates[:, None], size=(40, 8))
    _, low, high = summary.clustered_interval(draws.tolist())
    covered += low <= 0.5 <= high
  assert 0.92 < covered / 600 < 0.98


@pytest.mark.parametrize("bad", [[], [[]], [[1], []], [[2.0]]])
def test_clustered_interval_refuses(bad):
  with pytest.raises(ValueError):
    summary.clustered_interval(bad)


# --- several settings ---------------------------------------------------------


def test_mean_over_settings_is_students_of_their_means():
  groups = {"a": [1.0, 0.8], "b": [0.5], "c": [0.6, 0.7, 0.8], "d": [0.2]}
  means = [0.9, 0.5, 0.7, 0.2]
  mean, low, high = summary.mean_over_settings(groups)
  assert mean == pytest.approx(np.mean(means))
  wanted = scipy_stats.ttest_1samp(means, 0).confidence_interval()
  assert (low, high) == pytest.approx(tuple(wanted))


def test_mean_over_three_settings_covers():
  """The bootstrap of settings and seeds covered 71% here."""
  rng, hits, trials = np.random.default_rng(0), 0, 2000
  for _ in range(trials):
    settings = rng.normal(0.5, 0.1, 3)
    seeds = rng.normal(settings[:, None], 0.1, (3, 3))
    _, low, high = summary.mean_over_settings(
      dict(zip("abc", seeds.tolist(), strict=True))
    )
    hits += low <= 0.5 <= high
  assert hits / trials >= 0.93


def test_mean_over_settings_refuses():
  with pytest.raises(ValueError, match="at least 3 settings, not 2"):
    summary.mean_over_settings({"a": [1.0], "b": [0.5]})
  with pytest.raises(ValueError, match="b: a finite number"):
    summary.mean_over_settings({"a": [1.0], "b": [], "c": [0.1]})


# --- when it happens ----------------------------------------------------------


def test_survival_of_exact_and_censored_times_is_kaplan_meiers():
  rng = np.random.default_rng(0)
  times = rng.integers(1, 30, size=25)
  censored = rng.random(25) < 0.4
  found = summary.survival(
    [
      Bracket(float(t), None) if c else Bracket(t - 0.5, float(t))
      for t, c in zip(times, censored, strict=True)
    ]
  )
  data = scipy_stats.CensoredData.right_censored(times, censored)
  want = scipy_stats.ecdf(data).sf
  for step, share in found:
    assert share == pytest.approx(float(want.evaluate(step)), abs=1e-6)


def test_survival_of_intervals_is_the_likeliest():
  """Against a general optimizer of the same likelihood."""
  brackets = [Bracket(0, 4), Bracket(2, 8), Bracket(4, 8), Bracket(8, 16),
              Bracket(1, 16), Bracket(8, None)]  # fmt: skip
  cells = [(2, 4), (4, 8), (8, 16), (16, math.inf)]

  def cost(logits):
    mass = np.exp(logits - np.logaddexp.reduce(logits))
    total = 0.0
    for b in brackets:
      end = math.inf if b.until is None else b.until
      inside = [b.after <= lo and hi <= end for lo, hi in cells]
      total -= math.log(float(mass[inside].sum()) + 1e-300)
    return total

  best = optimize.minimize(cost, np.zeros(4), method="Nelder-Mead",
                           options={"xatol": 1e-9, "fatol": 1e-12,
                                    "maxiter": 20_000})  # fmt: skip
  found = summary.survival(brackets)
  left = [1.0, *(share for _, share in found)]
  mass = -np.diff([*left, 0.0])
  assert [s for s, _ in found] == [4, 8, 16]
  ours = cost(np.log(np.maximum(mass, 1e-300)))
  assert ours <= best.fun + 1e-6


@pytest.mark.parametrize(
  "ends", [(math.nan, None), (math.nan, 4), (0, math.nan), (4, 4)]
)
def test_a_bracket_has_two_steps(ends):
  with pytest.raises(ValueError, match="a bracket"):
    Bracket(*ends)


def test_brackets_and_medians():
  assert summary.bracket([0, 4, 8], 8) == Bracket(4, 8)
  assert summary.bracket([0, 4, 8], None) == Bracket(8, None)
  with pytest.raises(ValueError, match="first eval"):
    summary.bracket([0, 4], 0)
  curve = summary.survival([Bracket(0, 4), Bracket(4, 8), Bracket(8, None)])
  assert summary.median_step(curve) == 8
  assert summary.median_step(summary.survival([Bracket(8, None)])) is None
  with pytest.raises(ValueError):
    summary.survival([])


# --- what it costs ------------------------------------------------------------


def test_robustness_auc_of_removal_in_proportion_is_a_half():
  line = [(c, 1 - c) for c in np.linspace(0, 1, 11)]
  assert summary.robustness_auc(line) == pytest.approx(0.5)
  assert summary.robustness_auc([]) == 0.5
  assert summary.robustness_auc([(1.0, 1.0)]) == 1.0
  # A dominated checkpoint changes nothing.
  assert summary.robustness_auc([(1.0, 1.0), (0.5, 0.2)]) == 1.0
  assert summary.robustness_auc([(0.8, 0.6)]) == pytest.approx(
    0.8 * (1 + 0.6) / 2 + 0.2 * 0.6 / 2
  )


@given(
  st.lists(
    st.tuples(st.floats(0, 1.2), st.floats(0, 1)), min_size=1, max_size=12
  )
)
def test_hull_is_above_all_points_and_its_area_that_of_scipy(points):
  hull = summary.pareto_hull(points)
  xs, ys = zip(*hull, strict=True)
  assert list(xs) == sorted(xs)
  for c, r in points:
    # The hull may end in an upright line, on which only its top counts.
    above = max([np.interp(c, xs, ys), *(y for x, y in hull if x >= c)])
    assert above >= r - 1e-9
  assert summary.robustness_auc(points) == pytest.approx(
    float(np.trapezoid(ys, xs))
  )
  assert summary.robustness_auc(points) >= 0.5 - 1e-9


def test_removal_at_bounded_cost_by_an_intact_model():
  points = [(0.95, 0.25, True), (0.91, 0.3, True), (0.7, 1.0, True)]
  assert summary.removal_at(points) == 0.3
  assert summary.removal_at(points, 0.99) is None
  assert summary.removal_at([*points, (1.0, 0.9, False)]) == 0.3
  with pytest.raises(ValueError, match="not a capability"):
    summary.removal_at([*points, (math.nan, 0.9, True)])
  with pytest.raises(ValueError, match="capability = nan"):
    summary.removal_at(points, math.nan)


def test_auc_of_noise_of_one_checkpoint_is_that_of_all_outcomes():
  n_eval, n_probe, initial, capability = 6, 5, 0.8, 0.7
  mean = sum(
    scipy_stats.binom.pmf(kept, n_eval, initial)
    * scipy_stats.binom.pmf(right, n_probe, capability)
    * summary.robustness_auc(
      [(right / n_probe / capability, 1 - kept / n_eval)]
    )
    for kept in range(n_eval + 1)
    for right in range(n_probe + 1)
  )
  noise = (n_eval, n_probe, initial, capability)
  found, low, high = summary.auc_of_noise(1, *noise, draws=20_000)
  assert found == pytest.approx(mean, abs=0.003)
  assert low == 0.5 < found < high


def test_auc_of_noise_is_above_a_half_and_grows_with_checkpoints():
  few = summary.auc_of_noise(10, 32, 32, 0.97, 0.8)
  many = summary.auc_of_noise(60, 32, 32, 0.97, 0.8)
  assert 0.53 < few[0] < many[0] < 0.75
  sure = summary.auc_of_noise(60, 10_000, 10_000, 1.0, 0.8)
  assert sure[0] == pytest.approx(0.505, abs=0.005)
  for bad in ((0, 32, 32, 0.9, 0.9), (1, 32, 32, math.nan, 0.9),
              (1, 32, 32, 0.9, 0.0)):  # fmt: skip
    with pytest.raises(ValueError):
      summary.auc_of_noise(*bad)


# --- the learning-rate law ----------------------------------------------------


def law(curves, broken=()):
  """The law on curves of (step, rate), intact but at `broken` (lr, step)."""
  return summary.learning_rate_law(
    {
      lr: [(s, rate, (lr, s) not in broken) for s, rate in curve]
      for lr, curve in curves.items()
    }
  )


def test_learning_rate_law():
  curves = {
    1e-3: [(0, 1.0), (4, 0.3), (8, 0.0)],
    1e-4: [(0, 1.0), (240, 0.9), (300, 0.8)],
    1e-5: [(0, 1.0), (300, 1.0)],
  }
  first, second = law(curves)
  assert (first.lr, first.steps, first.lower) == (1e-3, 4, 1e-4)
  assert first.budget == pytest.approx(240) and first.holds is True
  assert second.budget == pytest.approx(2400) and second.holds is None
  # What is broken was not changed: no removal, so nothing to compare.
  assert law(curves, {(1e-3, 4), (1e-3, 8)}) == []
  assert law(curves, {(1e-3, 4)})[0].steps == 8
  curves[1e-4] = [(0, 1.0), (40, 0.2), (80, 0.1)]
  first = law(curves)[0]
  assert (first.crossed, first.holds) == (40, False)
  # Once below is not gone, unless it is the last eval.
  curves[1e-4] = [(0, 1.0), (40, 0.2), (80, 0.9), (300, 0.9)]
  assert law(curves)[0].holds is True


@pytest.mark.parametrize(
  "curve, message",
  [
    ([(4, 1.0), (4, 0.2)], "ascending"),
    ([(0, 1.0), (240, math.nan)], "step 240: nan is no rate"),
    ([(0, 1.0), (240, 1.5)], "1.5 is no rate"),
    ([(math.nan, 1.0), (240, 0.2)], "ascending"),
    ([(0, 1.0), (math.nan, 0.2)], "ascending"),
  ],
)
def test_learning_rate_law_refuses(curve, message):
  with pytest.raises(ValueError, match=message):
    law({1e-3: [(0, 1.0), (4, 0.0)], 1e-4: curve})


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_learning_rate_law_refuses_a_factor(factor):
  with pytest.raises(ValueError, match="factor"):
    summary.learning_rate_law({1e-3: [(0, 1.0, True)]}, factor)
