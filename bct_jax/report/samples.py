"""Picks the answers that a report shows outside of its browser."""

from collections.abc import Sequence

from bct_jax.report.read.types import ArmRecord, Row, RunRecord

NUM_PROMPTS = {"eval": 3, "heldout": 2}  # side by side, per split


def samples_of(run: RunRecord) -> list[tuple[str, Row]]:
  """Picks the first answer of each kind at the arms' last evals.

  Returns:
    The name of the arm and the answer: one that shows the initial behavior, one
    that shows the alternate one, and one that shows neither, as far as there
    are such.
  """
  found: dict[str, tuple[str, Row]] = {}
  for arm in run.arms:
    for row in arm.rollouts.get(max(arm.rollouts, default=0), ()):
      if row.split == "eval":
        found.setdefault(row.label, (arm.name, row))
  kinds = ("initial", "alternate", "other")
  return [found[kind] for kind in kinds if kind in found]


def first_middle_last(steps: Sequence[int]) -> list[int]:
  """Picks the first, the middle and the last step."""
  if not steps:
    return []
  return sorted({steps[0], steps[len(steps) // 2], steps[-1]})


def side_by_side(arm: ArmRecord, steps: Sequence[int]) -> list[list[Row]]:
  """Lists for each of a few prompts its completions at the steps.

  The prompts are the first of their split in the file. To choose them by their
  completions would make a nicer story than the run tells.
  """
  if not steps:
    return []
  rows = {s: {(r.split, r.id): r for r in arm.rollouts[s]} for s in steps}
  prompts = []
  for split, n in NUM_PROMPTS.items():
    ids = [r.id for r in arm.rollouts[steps[-1]] if r.split == split]
    for name in list(dict.fromkeys(ids))[:n]:
      answers = [rows[s].get((split, name)) for s in steps]
      prompts.append([row for row in answers if row is not None])
  return prompts
