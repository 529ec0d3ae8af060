"""Groups labelled completions by the cue of their prompts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bct_jax.evals.paired import (
  Interval,
  count_pairs,
  difference_interval,
  independent_pairs,
  ratio_interval,
)
from bct_jax.evals.stats import wilson
from bct_jax.evals.summary import clustered_interval

Row = Mapping[str, Any]  # a labelled completion, see evaluate.label_rollouts


def count_cues(rows: Sequence[Row]) -> int | None:
  """Counts cue entities; None where no prompt has one, as in older rows."""
  if not any(row.get("cue") for row in rows):
    return None
  return len(_by_cue(rows, rows))


@dataclasses.dataclass(frozen=True)
class PairedOutcomes:
  """Holds what two evals of the same prompts say of each.

  Attributes:
    before, after: whether it holds at the earlier and at the later one.
    groups: the cue entity of the prompt, or the prompt.
  """

  before: list[bool]
  after: list[bool]
  groups: list[str]

  def difference(self, confidence: float = 0.95) -> Interval:
    """Estimates the later rate minus the earlier one."""
    pairs = independent_pairs(self.after, self.before, self.groups, confidence)
    return difference_interval(pairs, confidence)

  def ratio(self, confidence: float = 0.95) -> Interval | None:
    """Estimates the later rate over the earlier one; None if that is 0."""
    plain = ratio_interval(count_pairs(self.after, self.before), confidence)
    if plain is None:
      return None
    pairs = independent_pairs(
      self.after, self.before, self.groups, confidence, plain.value
    )
    return ratio_interval(pairs, confidence)


def pair_rows(
  before: Sequence[Row],
  after: Sequence[Row],
  split: str,
  holds: Callable[[Row], bool],
) -> PairedOutcomes | None:
  """Pairs the prompts of a split at two evals; None if it has none.

  Args:
    before, after: labelled completions, one for each prompt of the split.
    split: "eval", "heldout" or "probe".
    holds: what is asked of a completion.

  Raises:
    ValueError: the prompts are not the same.
  """
  then = {r["id"]: r for r in before if r["split"] == split}
  now = {r["id"]: holds(r) for r in after if r["split"] == split}
  if then.keys() != now.keys():
    raise ValueError(
      f"the organism's {len(then)} {split} prompts are not the {len(now)} of "
      "the arm"
    )
  if not then:
    return None
  return PairedOutcomes(
    before=[holds(r) for r in then.values()],
    after=[now[k] for k in then],
    groups=[r.get("cue") or k for k, r in then.items()],
  )


def _by_cue(rows: Sequence[Row], scores: Sequence[Any]) -> list[list[Any]]:
  """Groups scores by the cue entity of their prompt.

  A prompt without one is a group of its own, with all of its samples.
  """
  groups: dict[Any, list[Any]] = {}
  for place, (row, score) in enumerate(zip(rows, scores, strict=True)):
    prompt = row["id"] if row.get("sample") else place
    groups.setdefault(row.get("cue") or prompt, []).append(score)
  return list(groups.values())


def count_by_dose(
  rows: Sequence[Row], scores: Sequence[bool]
) -> dict[str, list[int]]:
  """Counts scores by the dose of the prompt's cue, smallest dose first."""
  out: dict[float, list[int]] = {}
  for row, score in zip(rows, scores, strict=True):
    if row.get("dose") is not None:
      hits, n = out.get(row["dose"], (0, 0))
      out[row["dose"]] = [hits + bool(score), n + 1]
  return {f"{dose:g}": out[dose] for dose in sorted(out)}


def interval(rows: Sequence[Row], scores: Sequence[Any]) -> tuple[float, float]:
  """Calculates the 95% interval of a share of completions."""
  groups = _by_cue(rows, scores)
  if len(groups) == len(scores):
    return wilson(sum(scores), len(scores))
  return clustered_interval(groups)[1:]
