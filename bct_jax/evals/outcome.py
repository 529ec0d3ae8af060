"""Calculates how much of each behavior an arm ends with. Pure Python.

evals/README.md has the definitions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bct_jax.evals.groups import Row, pair_rows
from bct_jax.evals.paired import Interval

# Of result.json and an arm's done.json. 1 had one word for an arm, a verdict;
# 2 has a reading.
SCHEMA = 2
AGREED = 0.9  # on held-out train prompts, by an arm that is not broken


def deployment_length(curve: Sequence[Mapping[str, Any]]) -> int | None:
  """Finds the first step with initial < 0.5 and agreed >= 0.9, or None."""
  for point in curve:
    if point["initial"] < 0.5 and point["agreed"] >= AGREED:
      return point["step"]
  return None


def summarize_arm(
  curve: Sequence[Mapping[str, Any]],
  before: Sequence[Row],
  after: Sequence[Row],
) -> dict[str, Any]:
  """Calculates the numbers of an arm in result.json beside its reading.

  Args:
    curve: evals in order of steps.
    before, after: labelled completions of the organism and of the last eval.

  Returns:
    `retention` and `transfer` with their intervals, and `deployment_length`.
  """
  length = deployment_length(curve)
  retention = _ratio(before, after, lambda r: r["label"] == "initial")
  # The rise of the alternate rate towards 1 is the fall of its complement.
  rest = _ratio(before, after, lambda r: r["label"] != "alternate")
  return {
    "retention": retention and retention.value,
    "retention_ci": retention and _ends(retention.low, retention.high),
    "transfer": rest and 1 - rest.value,
    "transfer_ci": rest and _ends(1 - rest.high, 1 - rest.low),
    "deployment_length": length,
    "deployment_length_censored_at": (
      curve[-1]["step"] if length is None else None
    ),
  }


def _ratio(before, after, holds) -> Interval | None:
  """Estimates the later rate of what holds over the earlier one."""
  pairs = pair_rows(before, after, "eval", holds)
  return pairs and pairs.ratio()


def _ends(low: float, high: float) -> list[float | None]:
  """Returns the ends of an interval, None for one that JSON cannot say.

  A ratio over hardly any prompt has no upper bound.
  """
  return [x if math.isfinite(x) else None for x in (low, high)]
