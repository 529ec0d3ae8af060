"""Finds when training got to its target, and when the behavior was lost.

Both are known between two evals only: a bracket of steps. Pure Python.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from bct_jax.config import ReadingConfig
from bct_jax.evals.stats import first_lasting

Eval = Mapping[str, Any]  # a line of evals.jsonl
# The initial rate below which the behavior counts as gone, for the loss step.
GONE = 0.5


@dataclasses.dataclass(frozen=True)
class Crossing:
  """Holds between which evals something began to last.

  Attributes:
    after: the eval before it; None if the first eval shows it, or none does.
    by: the first eval that shows it; None if none does.
    censored_at: the last eval, if none shows it.
  """

  after: int | None
  by: int | None
  censored_at: int | None = None

  @property
  def first(self) -> int | None:
    """Returns the first step at which it may have begun."""
    if self.by is None:
      return None if self.censored_at is None else self.censored_at + 1
    return self.by if self.after is None else self.after + 1

  @property
  def exact(self) -> bool:
    """Tells whether the step is known: every update before it was looked at."""
    return self.by is not None and self.first == self.by

  def describe(self, verb: str) -> str:
    """Describes it: "reached at 6", "lost between 17 and 32"."""
    if self.by is None:
      return f"not {verb} by {self.censored_at}"
    if self.exact:
      return f"{verb} at {self.by}"
    return f"{verb} between {self.first} and {self.by}"


def mean_losses(
  lines: Sequence[Mapping[str, Any]], steps: Sequence[int]
) -> dict[int, float]:
  """Averages the training loss over the updates since the eval before.

  Args:
    lines: of metrics.jsonl.
    steps: of the evals, ascending.

  Returns:
    Step of an eval -> mean loss; none for an eval before any update.
  """
  out = {}
  for last, step in zip((0, *steps), steps, strict=False):
    losses = [x["loss"] for x in lines if last < x["step"] <= step]
    if losses:
      out[step] = sum(losses) / len(losses)
  return out


def find_crossing(steps: Sequence[int], holds: Sequence[bool]) -> Crossing:
  """Finds the first of two evals in a row, or the last eval, that hold.

  Args:
    steps: of the evals, ascending.
    holds: for each eval whether it shows what is looked for.
  """
  at = first_lasting(holds)
  if at is None:
    return Crossing(None, None, steps[-1])
  return Crossing(steps[at - 1] if at else None, steps[at])


def find_loss(curve: Sequence[Eval]) -> Crossing:
  """Finds when the initial behavior was gone."""
  steps = [point["step"] for point in curve]
  return find_crossing(steps, [p["initial"] < GONE for p in curve])


def find_progress(
  curve: Sequence[Eval],
  config: ReadingConfig,
  losses: Mapping[int, float] | None,
  styled: bool,
) -> tuple[Crossing, str]:
  """Finds when training got to its target, and the word; see read_arm."""
  bar, known = config.target_value, losses or {}
  steps = [point["step"] for point in curve]
  if config.target == "style":
    asked = styled
    reached = [styled and p["agreed_decorated"] >= bar for p in curve]
  elif config.target == "reward":
    # Only arms that are trained on a reward have one.
    asked = any("reward" in p for p in curve)
    reached = [p.get("reward", -math.inf) >= bar for p in curve]
  else:
    asked = True
    reached = [known.get(step, math.inf) <= bar for step in steps]
  if not asked:
    return Crossing(None, None, steps[-1]), "not asked"
  style = find_crossing(steps, reached)
  return style, "not reached" if style.by is None else "reached"


def margin_bounds(
  style: Crossing, loss: Crossing
) -> tuple[float, float | None] | None:
  """Bounds the loss step over the style step by their brackets."""
  if not style.by or not style.first or not loss.first:
    return None
  high = None if loss.by is None else loss.by / style.first
  return loss.first / style.by, high


def compare_bounds(
  first: tuple[float, float | None], second: tuple[float, float | None]
) -> int:
  """Compares two values that are known between bounds, such as margins.

  Args:
    first, second: (lower, upper) of each, upper None where there is none.

  Returns:
    1 if the first is larger, -1 if it is smaller, 0 if either may be.
  """
  (low, high), (other_low, other_high) = first, second
  if other_high is not None and other_high < low:
    return 1
  return -1 if high is not None and high < other_low else 0
