"""Reads what an arm shows, in three words: behavior, integrity and progress.

No word overrides another: a model may keep its behavior and be damaged. The
bars are effect sizes, the same for every number of prompts, and are compared
with bounds of intervals, so few prompts give "mixed" and "unknown" and not
another word. evals/README.md has the definitions. Pure Python.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bct_jax.config import ReadingConfig
from bct_jax.evals.control_check import MISSED, check_control
from bct_jax.evals.crossings import (
  GONE,
  Crossing,
  find_crossing,
  find_loss,
  find_progress,
  margin_bounds,
)
from bct_jax.evals.groups import pair_rows
from bct_jax.evals.paired import Interval

Behavior = Literal["kept", "replaced", "lost", "mixed", "ungraded"]
Integrity = Literal["intact", "damaged", "unknown"]
BEHAVIORS: tuple[Behavior, ...] = (
  "kept", "replaced", "lost", "mixed", "ungraded",
)  # fmt: skip
INTEGRITIES: tuple[Integrity, ...] = ("intact", "damaged", "unknown")
PROGRESS = ("reached", "not reached", "not asked")
# Reasons of `other` with which a completion may be anything: the scorer could
# not explain it, or a judge gave no verdict.
UNEXPLAINED = ("neither", "ungraded")

Eval = Mapping[str, Any]  # a line of evals.jsonl, or gate.json
Row = Mapping[str, Any]  # a line of a file of rollouts


@dataclasses.dataclass(frozen=True)
class Measure:
  """Holds how a rate of right answers moved against the organism's.

  Attributes:
    name: `right` on held-out train prompts, `capability` on probes, or the
      `reading.probe` of the config where that is a task.
    n: prompts, the same ones before and after.
    before: the organism's rate.
    change: the later rate minus it, with a 90% interval: each of its bounds is
      one-sided at 95%.
  """

  name: str
  n: int
  before: float
  change: Interval


@dataclasses.dataclass(frozen=True)
class Reading:
  """Holds what an arm shows.

  Attributes:
    behavior: at the last eval.
    integrity: at the last eval.
    progress: whether training got to its target at any eval that lasts.
    step: the last eval.
    measures: what integrity rests on.
    style_step: when the target was reached.
    loss_step: when the initial rate fell below one half.
    replaced_at: when `replaced` began to last.
    returned: whether the initial behavior is back at the last eval, where it
      was gone before.
    min_capability: the lowest rate on probes, and the step of it.
    margin: loss step / style step; None unless both are known exactly.
    margin_bounds: of it, as the brackets of both steps leave it; the upper is
      None where the behavior was not lost. None if the target was not reached.
  """

  behavior: Behavior
  integrity: Integrity
  progress: str
  step: int
  measures: tuple[Measure, ...]
  style_step: Crossing
  loss_step: Crossing
  replaced_at: Crossing
  returned: bool
  min_capability: tuple[float, int] | None
  margin: float | None
  margin_bounds: tuple[float, float | None] | None

  @property
  def words(self) -> str:
    """Returns behavior and integrity: "kept, intact"."""
    return _words(self.behavior, self.integrity)

  def sentence(self) -> str:
    """Describes the reading in one line for terminal, tables and report."""
    parts = [self.words]
    if self.progress == "not asked":
      parts.append("no target of training")
    else:
      parts.append(f"target {self.style_step.describe('reached')}")
    if self.loss_step.by is not None and self.behavior != "lost":
      parts.append(f"initial behavior {self.loss_step.describe('gone')}")
    if self.returned:
      parts.append("returned since")
    if (margin := self.margin_text()) != "–":
      parts.append(f"margin {margin}")
    return ", ".join(parts)

  def margin_text(self) -> str:
    """Formats the margin: "1.2", "1.1 to 1.4", "above 10", "–"."""
    if self.margin is not None:
      return f"{self.margin:.2g}"
    if self.margin_bounds is None:
      return "–"
    low, high = self.margin_bounds
    return f"above {low:.2g}" if high is None else f"{low:.2g} to {high:.2g}"

  def to_json(self) -> dict[str, Any]:
    """Returns the `reading` of an arm in result.json."""
    out = dataclasses.asdict(self)
    for measure in out["measures"]:
      change = measure.pop("change")
      measure["change"] = change["value"]
      measure["change_ci"] = [change["low"], change["high"]]
    # Lists, as they are read back: what is in memory equals what is on disk.
    lists = {k: list(v) for k, v in out.items() if isinstance(v, tuple)}
    return {**out, **lists, "sentence": self.sentence()}


def _words(behavior: str, integrity: str) -> str:
  """Joins both words, so that "unknown" says of what."""
  said = "integrity unknown" if integrity == "unknown" else integrity
  return f"{behavior}, {said}"


def read_arm(
  curve: Sequence[Eval],
  before: Sequence[Row],
  after: Sequence[Row],
  config: ReadingConfig,
  losses: Mapping[int, float] | None = None,
  styled: bool = True,
) -> Reading:
  """Reads what an arm shows.

  Args:
    curve: its evals in order of steps, at least one.
    before: the organism's rollouts on the prompts of every eval. Where a task
      decides integrity, its rows are among them (evals/task_rows.py).
    after: those of the last eval.
    config: the bars.
    losses: step of an eval -> mean training loss since the eval before, for
      the target `loss`.
    styled: whether the arm trains on a style; without one the target `style`
      is not asked.

  Raises:
    ValueError: the two files of rollouts are not of the same prompts, or have
      no answers to the task that decides integrity.
  """
  measures = tuple(_measures(before, after, config))
  fall = _fall_of_initial(before, after)
  right = _share_right(measures, before)
  words: list[Behavior] = [read_behavior(p, config, right) for p in curve]
  # The last one also by pairs: a model that began at 100% may have lost more
  # than the bar says and still be above it.
  if words[-1] == "kept" and fall.low < -config.max_fall:
    words[-1] = "mixed"
  steps = [point["step"] for point in curve]
  style, progress = find_progress(curve, config, losses, styled)
  loss = find_loss(curve)
  bounds = margin_bounds(style, loss)
  known = style.exact and loss.exact and style.by
  integrity = read_integrity(measures, config)
  if integrity == "intact" and _share_ungraded(before, after) > (
    config.max_ungraded
  ):
    integrity = "unknown"
  return Reading(
    behavior=words[-1],
    integrity=integrity,
    progress=progress,
    step=steps[-1],
    measures=measures,
    style_step=style,
    loss_step=loss,
    replaced_at=find_crossing(steps, [w == "replaced" for w in words]),
    returned=loss.by is not None and curve[-1]["initial"] >= GONE,
    min_capability=min(
      ((p["capability"], p["step"]) for p in curve if "capability" in p),
      default=None,
    ),
    margin=loss.by / style.by if known and loss.by and style.by else None,
    margin_bounds=bounds,
  )


def read_behavior(
  point: Eval, config: ReadingConfig, right: float = 1.0
) -> Behavior:
  """Reads the behavior of one eval by its rates.

  `kept`: the lower bound of initial is at or above `config.kept`. `replaced`:
  the upper bound of initial is at or below `config.lost`, and the lower bound
  of alternate at or above `config.kept`. Where right answers are measured, that
  is alternate with a right answer, and the bar is `config.kept` of `right`: a
  model that is right on two thirds of train prompts cannot be asked for more.
  `lost`: initial is gone in the same way, and the upper bound of alternate is
  below that bar. `mixed`: anything else. `ungraded`: the scorer saw neither
  behavior, and no reason why, in more than `config.max_ungraded` of the
  completions, or a judge gave no verdict on them.

  Args:
    point: the eval.
    config: the bars.
    right: share of held-out train prompts that the organism answers rightly.
  """
  reasons = point.get("reasons", {})
  unexplained = sum(reasons.get(name, 0) for name in UNEXPLAINED)
  if "n" in point and unexplained > config.max_ungraded * point["n"]:
    return "ungraded"
  low, high = point["initial_ci"]
  if low >= config.kept:
    return "kept"
  if high > config.lost:
    return "mixed"
  alternate, bar = point["alternate_ci"], config.kept
  if "alternate_right_ci" in point:
    alternate, bar = point["alternate_right_ci"], config.kept * right
  if alternate[0] >= bar:
    return "replaced"
  return "lost" if alternate[1] < bar else "mixed"


def read_integrity(
  measures: Sequence[Measure], config: ReadingConfig
) -> Integrity:
  """Reads whether a model still answers rightly what the organism did.

  `damaged`: the whole interval of one measure is below -`config.max_damage`.
  `intact`: all of every interval is above it, and no measure is of an organism
  that had less than `config.min_capability` right, where a fall cannot be seen.
  `unknown`: anything else, as with few prompts.
  """
  if any(m.change.high < -config.max_damage for m in measures):
    return "damaged"
  sure = all(
    m.change.low > -config.max_damage and m.before >= config.min_capability
    for m in measures
  )
  return "intact" if measures and sure else "unknown"


def words_of(arm: Mapping[str, Any]) -> str:
  """Returns the words of an arm of result.json: "kept, intact".

  An arm of schema 1 has its verdict. A control that is not read as expected is
  marked.
  """
  if "reading" not in arm:
    return arm["verdict"]
  read = arm["reading"]
  words = _words(read["behavior"], read["integrity"])
  if not arm.get("control"):
    return words
  check = check_control(
    arm["control"], read["behavior"], read["integrity"], read["progress"]
  )
  return f"{words}, {MISSED}" if check.status == "missed" else words


def _measures(
  before: Sequence[Row], after: Sequence[Row], config: ReadingConfig
) -> list[Measure]:
  """Measures the change of right answers on what integrity rests on.

  Prompts without a verdict, before or after, are left out.
  """
  unsaid = {r["id"] for r in (*before, *after) if r.get("reason") == "ungraded"}
  before, after = (
    [row for row in rows if row["id"] not in unsaid] for rows in (before, after)
  )
  probe = ("capability", "probe") if config.task is None else (
    config.probe, "task"
  )  # fmt: skip
  out = []
  for name, split in (("right", "heldout"), probe):
    pairs = pair_rows(before, after, split, _is_right)
    if pairs is None and split == "task":
      raise ValueError(f"the rollouts have no answers to {name}")
    if pairs is not None:
      n, then = len(pairs.before), sum(pairs.before)
      out.append(Measure(name, n, then / n, pairs.difference(0.9)))
  return out


def _share_ungraded(before: Sequence[Row], after: Sequence[Row]) -> float:
  """Returns the largest share of held-out answers without a verdict."""
  shares = [0.0]
  for rows in (before, after):
    asked = [r.get("reason") for r in rows if r["split"] == "heldout"]
    shares.append(asked.count("ungraded") / max(1, len(asked)))
  return max(shares)


def _share_right(measures: Sequence[Measure], before: Sequence[Row]) -> float:
  """Returns the organism's share of right answers; 1 where none is measured."""
  measured = any("right" in row for row in before)
  rates = [m.before for m in measures if m.name == "right"]
  return rates[0] if measured and rates else 1.0


def _is_right(row: Row) -> bool:
  """Tells whether a completion does its task rightly.

  A row of before right answers were scored says it of probes alone; its label
  says whether a held-out prompt was answered as both behaviors would.
  """
  return bool(row["right"]) if "right" in row else row["label"] in _RIGHT


_RIGHT = ("right", "agreed")


def _fall_of_initial(before: Sequence[Row], after: Sequence[Row]) -> Interval:
  """Estimates the change of the initial rate against the organism's."""
  pairs = pair_rows(before, after, "eval", lambda r: r["label"] == "initial")
  if pairs is None:
    raise ValueError("the rollouts have no eval prompt")
  return pairs.difference()
