"""Makes the overview: what all arms of a report show together.

Each panel has a sentence on what is drawn and out of how many. What the data do
not support is said in words instead of drawn.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

from bct_jax.evals import summary
from bct_jax.report import text
from bct_jax.report.comparable_arms import Group, Member, make_groups
from bct_jax.report.draw import comparisons
from bct_jax.report.draw.behavior_map import behavior_map, count_words
from bct_jax.report.draw.panels import (
  Panel,
  evaluated_arms,
  make_panels,
  plural,
)
from bct_jax.report.read.types import OrganismRecord, RunRecord

OPEN_GROUPS = 1  # with more than this, all but the first are folded


@dataclasses.dataclass(frozen=True)
class Part:
  """Holds the panels of one group of arms.

  Attributes:
    left_out: why there are no other panels, a line each.
    organisms: of the arms.
  """

  name: str
  panels: tuple[Panel, ...]
  left_out: tuple[str, ...]
  organisms: tuple[OrganismRecord, ...]


@dataclasses.dataclass(frozen=True)
class Overview:
  """Holds what the template of the overview needs.

  Attributes:
    readings: the map of behaviors of all arms.
    parts: the panels of each group.
    left_out: why groups have no panels, "" where all have.
    fold: whether each part is folded.
  """

  readings: Panel
  parts: tuple[Part, ...]
  left_out: str
  fold: bool


def make_overview(runs: Sequence[RunRecord]) -> Overview | None:
  """Makes the overview of all arms; None where there are fewer than two."""
  groups = make_groups(runs)
  if sum(len(g.members) for g in groups) < 2:
    return None
  # One learning rate has nothing to be compared with.
  several = [g for g in groups if len(evaluated_arms(g)) > 1]
  parts = tuple(_part(f"o{i + 1}", g) for i, g in enumerate(several))
  alone = len(groups) - len(several)
  left_out = "" if not alone else (
    f"Curves by learning rate need two learning rates with evals; "
    f"{alone} of {len(groups)} rows have fewer."
  )  # fmt: skip
  return Overview(
    _readings(groups, runs), parts, left_out, fold=len(parts) > OPEN_GROUPS
  )


def _readings(groups: Sequence[Group], runs: Sequence[RunRecord]) -> Panel:
  """Makes the map of behaviors: a row a group, a column a learning rate."""
  rates = sorted({lr for group in groups for lr in group.by_lr})
  cells: dict[tuple[int, int], Counter[str]] = {}
  notes: dict[tuple[int, int], str] = {}
  for row, group in enumerate(groups):
    for lr, members in group.by_lr.items():
      cell = row, rates.index(lr)
      cells[cell] = Counter(m.arm.behavior or "unfinished" for m in members)
      notes[cell] = _note(members)
  members = [m for group in groups for m in group.members]
  total = sum((c for c in cells.values()), Counter())
  counts = ", ".join(f"{n} {name}" for name, n in total.most_common())
  caption = f"{plural(len(members), 'arm')}: {counts}."
  caption += " Each cell is the arms that differ in seed alone."
  has_gaps = len(cells) < len(groups) * len(rates)
  more = _gaps(groups, runs, has_gaps) + _starts(runs) + _across(groups)
  if not rates:
    return Panel("readings", "Readings", caption, notes=more.strip())
  picture = behavior_map(
    "ov", f"Behaviors: {counts}", [text.visible(g.name) for g in groups], rates,
    cells, notes,
  )  # fmt: skip
  rows = [
    (
      text.visible(group.name),
      [
        (
          f"lr {text.number(lr)}",
          f"{count_words(cells[row, i])} ({notes[row, i]})",
        )
        for i, lr in enumerate(rates)
        if (row, i) in cells
      ],
    )
    for row, group in enumerate(groups)
  ]
  return Panel(
    "readings",
    "Behavior by learning rate",
    caption,
    picture,
    more.strip(),
    rows,
  )


def _gaps(
  groups: Sequence[Group], runs: Sequence[RunRecord], has_gaps: bool
) -> str:
  """Says what the map lacks, and which of its rows say little.

  Args:
    groups: its rows.
    runs: of their arms.
    has_gaps: whether it has an empty cell.
  """
  more = " An empty cell: no such arm." if has_gaps else ""
  unknown = sum(m.lr is None for group in groups for m in group.members)
  if unknown:
    more += f" Not shown: {plural(unknown, 'arm')} of unknown learning rate."
  none = sum(not run.arms for run in runs)
  if none:
    more += f" {plural(none, 'run')} without any arm: see below."
  if any("repeat" in g.name for g in groups):
    more += (
      ' A row that ends in "repeat" has arms of the same learning rate and'
      " seed as the row of that name, which are no further seeds."
    )
  gates = [run.organism.gate for run in runs]
  failed = sum(gate is not None and not gate.passed for gate in gates)
  if failed:
    more += (
      f" In {failed} of {plural(len(runs), 'run')} the organism failed the "
      "gate: what arms of it did says little."
    )
  return more


def _note(members: Sequence[Member]) -> str:
  """Says how many seeds a cell of the map has, and how many are intact."""
  note = plural(len(members), "seed")
  read = [m.arm.reading for m in members if m.arm.reading is not None]
  if not read:
    return note
  return f"{note}, {sum(r.integrity == 'intact' for r in read)} intact"


def _starts(runs: Sequence[RunRecord]) -> str:
  """Says whether the organisms of the arms begin alike."""
  gates = {run.organism.hash: run.organism.gate for run in runs}
  checks = [gate for gate in gates.values() if gate is not None]
  if len(checks) < 2:
    return ""
  parts, apart = [], []
  for name in ("initial", "agreed", "capability"):
    rates = [gate.rates[name] for gate in checks if name in gate.rates]
    if not rates:
      continue
    low, high = (f(rates, key=lambda rate: rate.value) for f in (min, max))
    ends = dict.fromkeys(text.percent(rate.value) for rate in (low, high))
    parts.append(f"{name} {' to '.join(ends)}")
    if low.ci and high.ci and low.ci[1] < high.ci[0]:
      apart.append(name)
  sentences = f" The {len(checks)} organisms start with {', '.join(parts)}."
  if apart:
    sentences += (
      f" They are not matched in {' and '.join(apart)}: the intervals of the"
      " lowest and the highest are apart."
    )
  return sentences


def _across(groups: Sequence[Group]) -> str:
  """Says the mean retention over settings by learning rate.

  "": the groups differ in more than their setting.
  """
  names = [group.members[0].run.setting for group in groups]
  if len(groups) < 2 or len(set(names)) < len(names):
    return ""
  by_lr: dict[float, dict[str, list[float]]] = {}
  for name, group in zip(names, groups, strict=True):
    for lr, members in group.by_lr.items():
      seeds = [m.arm.retention.value for m in members if m.arm.retention]
      if seeds:
        by_lr.setdefault(lr, {})[name] = seeds
  parts = []
  for lr, values in sorted(by_lr.items()):
    if len(values) >= summary.MIN_UNITS:
      mean, low, high = summary.mean_over_settings(values)
      parts.append(
        f"lr {text.number(lr)} {mean:.2f} [{low:.2f}, {high:.2f}]"
        f" ({len(values)} settings)"
      )
  if not parts:
    return ""
  return (
    " Mean retention over settings, with Student's 95% interval of the"
    f" settings' means: {', '.join(parts)}."
  )


def _part(key: str, group: Group) -> Part:
  """Makes the panels of a group; `key` begins the ids of its figures."""
  by_lr = evaluated_arms(group)
  rates, left_out = list(by_lr), []
  if len(rates) > comparisons.MAX_RATES:
    # Evenly spaced, the lowest and the highest among them.
    last = len(rates) - 1
    shown = {
      rates[round(i * last / (comparisons.MAX_RATES - 1))]
      for i in range(comparisons.MAX_RATES)
    }
    omitted = [text.number(lr) for lr in rates if lr not in shown]
    left_out.append(
      f"Lines are drawn for {comparisons.MAX_RATES} of {len(rates)} learning "
      f"rates; not for {', '.join(omitted)}."
    )
    rates = sorted(shown)
  panels = []
  for panel in make_panels(key, group, by_lr, rates):
    if panel.picture is None:
      left_out.append(f"{panel.title} is not drawn: {panel.caption}")
    else:
      panels.append(panel)
  organisms = tuple(member.run.organism for member in group.members)
  return Part(group.name, tuple(panels), tuple(left_out), organisms)
