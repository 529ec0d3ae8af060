"""Compares a scorer's labels with a person's, and corrects rates by that.

Answers are sampled from strata of the scorer's own labels, so that rare ones
are among them. Each answer therefore has a weight: how many answers of the run
it stands for. Pure Python.
"""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from bct_jax.evals.stats import score_interval

# Labels whose rates are corrected, and the split that each is of.
CORRECTED = {"initial": "eval", "alternate": "eval", "agreed": "heldout"}
Interval = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Labelled:
  """Holds an answer with two labels.

  Attributes:
    weight: of how many answers it is one.
    scorer: the label of the scorer.
    person: the label of a person.
  """

  weight: float
  scorer: str
  person: str


@dataclasses.dataclass(frozen=True)
class Share:
  """Holds a share of weighted answers.

  Attributes:
    value: the share.
    n: the number of answers that would tell as much if all weighed the same,
      the square of the sum of weights over the sum of squares (L. Kish,
      "Survey Sampling", 1965, 11.7).
    ci: its 95% interval, Wilson's at that n.
  """

  value: float
  n: float
  ci: Interval

  @classmethod
  def of(cls, answers: Sequence[tuple[float, bool]]) -> "Share | None":
    """Estimates the share of answers that hold; None of no answer.

    Args:
      answers: the weight of each, and whether it holds.
    """
    total = sum(weight for weight, _ in answers)
    if not total:
      return None
    value = sum(weight for weight, holds in answers if holds) / total
    n = total**2 / sum(weight**2 for weight, _ in answers)
    value = min(max(value, 0.0), 1.0)
    return cls(value, n, score_interval(value, n))


@dataclasses.dataclass(frozen=True)
class Errors:
  """Holds how often a scorer is right about one label.

  Attributes:
    sensitivity: share with the label of those that should have it.
    specificity: share without it of those that should not.
  """

  sensitivity: Share
  specificity: Share

  def correct(self, rate: float, n: float) -> "Corrected | None":
    """Corrects a rate of the label for these errors.

    The estimate is that of W. Rogan and B. Gladen, "Estimating prevalence from
    the results of a screening test", Am. J. Epidemiology 107 (1978), cut to
    [0, 1]. The interval is that of Z. Lang and J. Reiczigel, "Confidence limits
    for prevalence of disease adjusted for estimated sensitivity and
    specificity", Preventive Veterinary Medicine 113 (2014). Both take the
    errors to be the same in all evals.

    Args:
      rate: share of answers that the scorer gives the label.
      n: independent prompts.

    Returns:
      None where the scorer tells no more than chance.
    """
    found = self.sensitivity, self.specificity
    gain = found[0].value + found[1].value - 1
    if gain <= 0:
      return None
    value = min(max((rate + found[1].value - 1) / gain, 0.0), 1.0)
    z = statistics.NormalDist().inv_cdf(0.975)
    # Agresti and Coull's pseudo-observations, as the paper has them.
    p, n = (n * rate + z * z / 2) / (n + z * z), n + z * z
    (se, n_se), (sp, n_sp) = (
      ((s.n * s.value + 1) / (s.n + 2), s.n + 2) for s in found
    )
    gain = se + sp - 1
    if gain <= 0:
      return None
    center = (p + sp - 1) / gain
    of_se, of_sp = se * (1 - se) / n_se, sp * (1 - sp) / n_sp
    shift = 2 * z * z * (center * of_se - (1 - center) * of_sp)
    spread = p * (1 - p) / n + (1 - center) ** 2 * of_sp + center**2 * of_se
    half = z * spread**0.5 / gain
    low, high = center + shift - half, center + shift + half
    low, high = (min(max(x, 0.0), 1.0) for x in (low, high))
    return Corrected(value, (min(low, value), max(high, value)))

  def to_json(self) -> dict[str, Any]:
    """Returns the part of calibration.json."""
    return {
      key: value
      for name in ("sensitivity", "specificity")
      for key, value in _to_json(name, getattr(self, name)).items()
    }


@dataclasses.dataclass(frozen=True)
class Corrected:
  """Holds a rate that was corrected, with its 95% interval."""

  value: float
  ci: Interval


@dataclasses.dataclass(frozen=True)
class Agreement:
  """Holds how far a scorer and a person agree on all labels of a split.

  Attributes:
    n: answers that both labelled.
    share: of answers with the same label.
    kappa: J. Cohen, "A coefficient of agreement for nominal scales",
      Educational and Psychological Measurement 20 (1960); None where both give
      all answers one label.
    kappa_ci: its 95% interval: that of the share, with the agreement by chance
      taken as known, as there; Wilson's, so that it is open at 1.
  """

  n: int
  share: Share
  kappa: float | None
  kappa_ci: Interval | None

  def to_json(self) -> dict[str, Any]:
    """Returns the part of calibration.json."""
    ci = self.kappa_ci
    return {
      "answers": self.n,
      **_to_json("agreement", self.share),
      "kappa": self.kappa,
      "kappa_ci": None if ci is None else list(ci),
    }


def measure_agreement(answers: Sequence[Labelled]) -> Agreement:
  """Measures how far two labels of the same answers agree.

  Raises:
    ValueError: there is no answer.
  """
  share = Share.of([(a.weight, a.scorer == a.person) for a in answers])
  if share is None:
    raise ValueError("no answer has both labels")
  total = sum(a.weight for a in answers)
  chance = 0.0
  for label in {a.person for a in answers}:
    by_scorer = sum(a.weight for a in answers if a.scorer == label)
    by_person = sum(a.weight for a in answers if a.person == label)
    chance += by_scorer * by_person / total**2
  if chance > 1 - 1e-12:
    return Agreement(len(answers), share, None, None)

  def beyond(value: float) -> float:
    """Returns the agreement beyond chance, as a share of what is possible."""
    return (value - chance) / (1 - chance)

  low, high = map(beyond, share.ci)
  return Agreement(len(answers), share, beyond(share.value), (low, high))


def measure_errors(answers: Sequence[Labelled], label: str) -> Errors | None:
  """Measures how often a scorer is right about a label.

  Returns:
    None where a person gave it to all answers, or to none.
  """
  shares = [
    Share.of(
      [
        (a.weight, (a.scorer == label) == holds)
        for a in answers
        if (a.person == label) == holds
      ]
    )
    for holds in (True, False)
  ]
  sensitivity, specificity = shares
  if sensitivity is None or specificity is None:
    return None
  return Errors(sensitivity, specificity)


def _to_json(name: str, share: Share) -> dict[str, Any]:
  """Returns a share by the keys of calibration.json."""
  return {name: share.value, f"{name}_n": share.n, f"{name}_ci": [*share.ci]}
