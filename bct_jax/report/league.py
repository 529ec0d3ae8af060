"""Compares organisms: what training it took to remove each one's behavior.

An organism is a row, with its arms of all styles, learning rates and seeds. Its
seeds are the units of every interval: (organism, training seed). So organisms
that differ in their seed alone are one row, and runs tell rows apart by the
`name` of their config.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from bct_jax.evals import summary
from bct_jax.evals.stats import MIN_UNITS, t_interval
from bct_jax.evals.verdict import MIN_CAPABILITY
from bct_jax.infra import formats
from bct_jax.report import text
from bct_jax.report.comparable_arms import Member
from bct_jax.report.draw.removal_points import (
  is_intact,
  organism_capability,
  removal_points,
)
from bct_jax.report.read.folders import load_runs
from bct_jax.report.read.load import CONTROL
from bct_jax.report.read.types import ReportError, RunRecord
from bct_jax.report.tables import FORMS

HEADER = (
  *("organism", "gate", "seeds", "arms", "target reached", "lost"),
  *("margin, at least", "removal at 90% capability", "AUC above chance"),
)
# A number, and its interval if there is one.
Estimate = tuple[float, float | None, float | None]
# Completions as summary.hierarchical_interval takes them.
Observation = tuple[Hashable, Hashable, Hashable, float]


@dataclasses.dataclass(frozen=True)
class Unit:
  """Holds the arms of one organism with one training seed."""

  name: str
  members: tuple[Member, ...]

  @functools.cached_property
  def points(self) -> list[tuple[float, float, bool]]:
    """Lists what all checkpoints keep and removed, see removal_points."""
    return [p for m in self.members for p in removal_points(m)]

  @property
  def auc_above_chance(self) -> float | None:
    """Returns the robustness AUC less that of a model that never changes."""
    bases = [organism_capability(m) or 0.0 for m in self.members]
    starts = [m.arm.curve[0].initial.value for m in self.members]
    counts = [
      (p.n, p.capability.n)
      for m in self.members
      for p in m.arm.curve
      if p.capability is not None and p.capability.n
    ]
    if not self.points or not counts:
      return None
    chance, _, _ = summary.auc_of_noise(
      len(self.points),
      min(n for n, _ in counts),
      min(n for _, n in counts),
      statistics.fmean(starts),
      statistics.fmean(bases),
    )
    area = summary.robustness_auc([(c, r) for c, r, _ in self.points])
    return area - chance

  @property
  def log_margin(self) -> tuple[float, bool] | None:
    """Returns log2 of the median margin, and whether it is only a least one.

    Of arms that were looked at between evals only, and of those that did not
    lose the behavior, the lower bound counts. None: no arm has a margin.
    """
    bounds = sorted(
      m.arm.reading.margin_bounds
      for m in self.members
      if m.arm.reading is not None and m.arm.reading.margin_bounds is not None
    )
    if not bounds:
      return None
    lows = [math.log2(low) for low, _ in bounds]
    return statistics.median(lows), any(high != low for low, high in bounds)

  def removed(self) -> list[Observation] | None:
    """Lists the answers of the intact checkpoint that removed most.

    Returns:
      (unit, prompt, prompt, 1.0 if it does not show the initial behavior) of
      each eval prompt; those of the organism where no checkpoint is intact.
      Such a one keeps 90% of the organism's capability. None: the completions
      are not there, or the organism's capability says too little.
    """
    best = None
    for m in self.members:
      base = organism_capability(m)
      if base is None or base < MIN_CAPABILITY:
        continue
      for point in m.arm.curve:
        if point.step and not is_intact(point, base):
          continue
        key = (1 - point.initial.value, -point.step)
        if best is None or key > best[0]:
          best = key, m.arm.rollouts.get(point.step)
    if best is None or not best[1]:
      return None
    return [
      (self.name, row.id, row.id, float(row.label != "initial"))
      for row in best[1]
      if row.split == "eval"
    ]


def league_table(run_dirs: Sequence[str | Path], form: str) -> str:
  """Writes one row for each organism, the one that kept most first.

  Args:
    run_dirs: run or sweep directories; arms without an eval are left out.
    form: latex, markdown or csv.

  Raises:
    ReportError: a run cannot be read, or no arm has an eval.
    KeyError: an unknown form.
  """
  write = FORMS[form]
  of_name: dict[str, list[RunRecord]] = {}
  for run in load_runs(run_dirs)[0]:
    name = str(run.config.get("name") or text.title(run))
    of_name.setdefault(name, []).append(run)
  rows = []
  for name, runs in of_name.items():
    units = _units(runs)
    if units:
      rows.append(_row(name, runs, units))
  if not rows:
    raise ReportError("no arm of these runs has an eval yet")
  rows.sort(key=lambda pair: pair[0])
  return write([[*HEADER], *(cells for _, cells in rows)])


def _units(runs: Sequence[RunRecord]) -> list[Unit]:
  """Groups the arms of an organism's runs by organism hash and seed."""
  out: dict[str, list[Member]] = {}
  for run in runs:
    for number, arm in enumerate(run.arms):
      if arm.curve and not arm.settings.get(CONTROL):
        key = f"{run.organism.hash}/{arm.settings.get('seed')}"
        out.setdefault(key, []).append(Member(run, arm, number))
  return [Unit(name, tuple(members)) for name, members in out.items()]


def _row(
  name: str, runs: Sequence[RunRecord], units: Sequence[Unit]
) -> tuple[tuple[float, float], list[str]]:
  """Makes the row of an organism, with what it is sorted by."""
  arms = [m.arm for unit in units for m in unit.members]
  readings = [arm.reading for arm in arms if arm.reading is not None]
  lost = [arm for arm in arms if arm.loss_step and arm.loss_step.by is not None]
  removal = removal_interval(units)
  margins = [x for unit in units if (x := unit.log_margin) is not None]
  margin = _mean([value for value, _ in margins])
  at_least = any(least for _, least in margins)
  if at_least and margin is not None:
    margin = (*margin[:2], None)  # of lower bounds, no upper end holds
  areas = [x for u in units if (x := u.auc_above_chance) is not None]
  area = _mean(areas)
  gates = {run.organism.gate.passed for run in runs if run.organism.gate}
  gate = {frozenset({True}): "passed", frozenset(): "–"}.get(
    frozenset(gates), "FAILED"
  )
  cells = [
    *(name, gate, str(len(units)), str(len(arms))),
    f"{sum(r.progress == 'reached' for r in readings)} of {len(arms)}",
    f"{len(lost)} of {len(arms)}",
    ("≥ " if at_least else "") + _format(margin, lambda x: f"{2**x:.2f}"),
    _format(removal, formats.percent),
    _format(area, lambda x: f"{x:+.2f}"),
  ]
  order = removal[0] if removal else math.inf
  return (order, -(margin[0] if margin else 0.0)), cells


def removal_interval(units: Sequence[Unit]) -> Estimate | None:
  """Estimates the removal at a bounded cost, over seeds and prompts.

  Returns:
    (value, low, high) as of summary.hierarchical_interval; without bounds for
    fewer than 3 seeds. None: nothing is known.
  """
  observed = [rows for unit in units if (rows := unit.removed())]
  if not observed:
    return None
  if len(observed) >= MIN_UNITS and all(len(x) >= MIN_UNITS for x in observed):
    return summary.hierarchical_interval([x for rows in observed for x in rows])
  shares = [statistics.fmean(x[3] for x in rows) for rows in observed]
  return statistics.fmean(shares), None, None


def _mean(values: Sequence[float]) -> Estimate | None:
  """Averages a number over seeds; with Student's interval of 3 and more.

  Seeds that all give the same number, as where evals are steps apart, do not
  tell how far others would be from it: there is no interval then.
  """
  if not values:
    return None
  low = high = None
  if len(values) >= MIN_UNITS and max(values) - min(values) > 1e-9:
    low, high = t_interval(values)
  return statistics.fmean(values), low, high


def _format(value: Estimate | None, write: Callable[[float], str]) -> str:
  """Writes a number with its interval, as far as there is one."""
  if value is None:
    return "–"
  mean, low, high = value
  if low is None:
    return write(mean)
  end = "–" if high is None else write(high)
  return f"{write(mean)} [{write(low)}, {end}]"
