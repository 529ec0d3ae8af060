"""Groups labelled completions by the cue of their prompts."""

from collections.abc import Mapping, Sequence
from typing import Any

from bct_jax.evals.stats import wilson
from bct_jax.evals.summary import clustered_interval

Row = Mapping[str, Any]  # a labelled completion, see evaluate.label_rollouts


def count_cues(rows: Sequence[Row]) -> int | None:
  """Counts cue entities; None where no prompt has one, as in older rows."""
  if not any(row.get("cue") for row in rows):
    return None
  return len(_by_cue(rows, rows))


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
