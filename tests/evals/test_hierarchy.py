"""A rate over seeds and cue entities: known values, and how often it covers."""

import math

import numpy as np
import pytest
from scipy import special
from scipy import stats as scipy_stats

from bct_jax.evals.hierarchy import hierarchical_interval
from bct_jax.evals.stats import score_interval


def observations(outcomes):
  """Lists outcomes [seed, entity, prompt, sample] as the function takes them.

  Every seed is asked the same prompts.
  """
  return [
    (seed, entity, (entity, prompt), float(outcomes[seed, entity, prompt, k]))
    for seed, entity, prompt, k in np.ndindex(outcomes.shape)
  ]


def draw(rng, shape, mean, seeds, entities, prompts=0.5):
  """Draws outcomes whose logits have normal effects of these deviations."""
  s, e, p, _ = shape
  logits = (
    mean
    + rng.normal(0, seeds, (s, 1, 1, 1))
    + rng.normal(0, entities, (1, e, 1, 1))
    + rng.normal(0, prompts, (1, e, p, 1))
  )
  return rng.random(shape) < special.expit(logits)


def true_rate(mean, seeds, entities, prompts=0.5):
  """The mean of the logistic function of a normal variable, by quadrature."""
  at, weights = np.polynomial.hermite_e.hermegauss(80)
  spread = math.sqrt(seeds**2 + entities**2 + prompts**2)
  values = special.expit(mean + spread * at)
  return float(weights @ values / weights.sum())


@pytest.mark.parametrize(
  ("shape", "mean", "seeds", "entities"),
  [
    ((5, 16, 2, 1), 0.0, 1.0, 0.7),
    ((5, 32, 1, 1), 3.0, 2.0, 1.0),
    ((7, 12, 1, 2), 2.0, 1.5, 0.5),
    ((10, 32, 1, 1), 4.0, 2.0, 1.0),
    ((10, 6, 4, 1), 0.0, 0.5, 2.0),
    ((10, 32, 1, 1), 1.0, 4.0, 0.0),  # most seeds are at 0 or 1
    ((5, 32, 1, 1), 3.0, 0.0, 0.0),
  ],
)
def test_it_covers_with_5_to_10_seeds(shape, mean, seeds, entities):
  rng, trials = np.random.default_rng(0), 200
  truth, hits = true_rate(mean, seeds, entities), 0
  for _ in range(trials):
    outcomes = draw(rng, shape, mean, seeds, entities)
    _, low, high = hierarchical_interval(observations(outcomes))
    hits += low <= truth <= high
  assert hits / trials >= 0.93


@pytest.mark.long
def test_a_bootstrap_of_all_levels_does_not():
  """Seeds, entities, prompts and samples, each drawn within the one above."""
  rng, trials, hits = np.random.default_rng(0), 300, 0
  truth = true_rate(3.0, 2.0, 1.0)
  for _ in range(trials):
    outcomes = draw(rng, (5, 32, 1, 1), 3.0, 2.0, 1.0)
    means = []
    for _ in range(200):
      drawn = [
        outcomes[s, rng.integers(0, 32, 32)] for s in rng.integers(0, 5, 5)
      ]
      means.append(np.mean(drawn))
    low, high = np.quantile(means, (0.025, 0.975))
    hits += low <= truth <= high
  assert hits / trials < 0.9


def test_variance_is_that_of_two_way_clusters():
  """The number is of statsmodels 0.15.0: OLS on a constant, two groups."""
  rng = np.random.default_rng(3)
  rates = rng.random((6, 1, 1)) * 0.2 + rng.random((1, 8, 1)) * 0.8
  outcomes = (rng.random((6, 8, 2)) < rates)[..., None]
  rate, low, high = hierarchical_interval(observations(outcomes))
  assert rate == pytest.approx(0.3958333333)
  more = abs(1 - 2 * rate) * rate * (1 - rate) / 30
  variance = 0.00373765 + more
  wider = scipy_stats.t.ppf(0.975, 5) / scipy_stats.norm.ppf(0.975)
  trials = rate * (1 - rate) / (variance * wider**2)
  wanted = score_interval(rate, trials)
  assert (low, high) == pytest.approx(wanted, abs=1e-6)


def test_seeds_alone_are_students_t():
  """Each seed has prompts of its own, and the rate is one half."""
  rates = [0.2, 0.4, 0.5, 0.6, 0.8]
  listed = [
    (seed, (seed, i), i, float(i < 10 * rate))
    for seed, rate in enumerate(rates)
    for i in range(10)
  ]
  rate, low, high = hierarchical_interval(listed)
  assert rate == pytest.approx(0.5)
  half = scipy_stats.sem(rates) * scipy_stats.t.ppf(0.975, 4)
  trials = 0.25 / (half / scipy_stats.norm.ppf(0.975)) ** 2
  assert (low, high) == pytest.approx(score_interval(0.5, trials))


def test_samples_of_a_prompt_count_as_one_prompt():
  rng = np.random.default_rng(0)
  once = draw(rng, (5, 8, 2, 1), 1.0, 1.0, 1.0)
  many = np.repeat(once, 7, axis=3)
  assert hierarchical_interval(observations(many)) == pytest.approx(
    hierarchical_interval(observations(once))
  )
  listed = observations(once)
  listed += [listed[0]] * 3  # one prompt has more samples
  assert hierarchical_interval(listed) == pytest.approx(
    hierarchical_interval(observations(once))
  )


def test_where_all_agree_there_is_an_interval():
  whole = observations(np.ones((5, 32, 1, 1)))
  rate, low, high = hierarchical_interval(whole)
  assert (rate, high) == (1, 1)
  assert low == pytest.approx(0.72, abs=0.01)
  # It moves little when one answer of one seed differs.
  whole[0] = (*whole[0][:3], 0.0)
  assert hierarchical_interval(whole)[1] == pytest.approx(low, abs=0.04)
  none = observations(np.zeros((5, 9, 1, 1)))
  assert hierarchical_interval(none)[:2] == pytest.approx((0, 0), abs=1e-12)


def test_where_seeds_agree_by_chance_it_is_wider_than_of_independent_answers():
  half = np.zeros((5, 8, 1, 1))
  half[:, ::2] = 1  # in each seed, and of each entity or none
  listed = [(s, e // 2, e, y) for s, e, _, y in observations(half)]
  rate, low, high = hierarchical_interval(listed)
  assert rate == 0.5 and low == pytest.approx(1 - high)
  assert low < score_interval(0.5, 40)[0]


@pytest.mark.parametrize(
  ("listed", "message"),
  [
    (
      observations(np.ones((2, 9, 1, 1))),
      "over seeds needs at least 3.* 2",
    ),
    (observations(np.ones((9, 2, 4, 1))), "cue entities needs at least 3.* 2"),
    ([], "not 0"),
    ([(0, 0, 0, math.nan)], "nan is no number from 0 to 1"),
    ([(0, 0, 0, 1.5)], "1.5 is no number"),
  ],
)
def test_it_refuses(listed, message):
  with pytest.raises(ValueError, match=message):
    hierarchical_interval(listed)
