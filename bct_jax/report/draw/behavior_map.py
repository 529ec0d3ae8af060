"""Draws the map of behaviors: rows are groups, columns learning rates."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from bct_jax.report import text
from bct_jax.report.draw.picture import COLORS, GRID, Picture

# The colors of behaviors in the page; then those of the verdicts of schema 1.
BEHAVIORS = {
  "kept": COLORS["initial"],
  "replaced": COLORS["alternate"],
  "lost": COLORS["bad"],
  "mixed": COLORS["other"],
  "ungraded": "none",
  "unfinished": "none",
  "retained": COLORS["initial"],
  "transferred": COLORS["alternate"],
  "degraded": COLORS["bad"],
  "inconclusive": COLORS["other"],
}
_CELL = (118.0, 44.0)  # of a cell, width and height


def behavior_map(
  key: str,
  label: str,
  rows: Sequence[str],
  rates: Sequence[float],
  cells: Mapping[tuple[int, int], Counter[str]],
  notes: Mapping[tuple[int, int], str],
) -> Picture:
  """Draws a table of behaviors; a cell has a stripe for each of its own.

  Args:
    key, label: of the Picture.
    rows: name of each group of arms.
    rates: the learning rate of each column.
    cells: (row, column) -> behavior -> number of seeds.
    notes: (row, column) -> what to write below the words.
  """
  names = [_wrap_name(name) for name in rows]
  longest = max(len(line) for name in names for line in name.split("\n"))
  left = 16 + 6.4 * longest
  width, height = _CELL[0] * len(rates), _CELL[1] * len(rows)

  def draw(axes: Axes) -> None:
    axes.set_xlim(0, len(rates))
    axes.set_ylim(len(rows), 0)
    for (row, column), behaviors in cells.items():
      _cell(axes, row, column, behaviors, notes[row, column])
    axes.set_xticks(
      [i + 0.5 for i in range(len(rates))], [text.number(lr) for lr in rates]
    )
    axes.set_yticks([i + 0.5 for i in range(len(rows))], names)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
      spine.set_visible(False)
    axes.set_xlabel("learning rate")

  return Picture(
    draw,
    key,
    label,
    size=(left + width + 12, height + 54),
    margins=(left, 8, 12, 46),
    fixed=True,
  )


def _wrap_name(name: str, width: int = 30) -> str:
  """Breaks a name into three lines at most; a longer one ends in dots."""
  return "\n".join(
    textwrap.wrap(
      name, width, max_lines=3, placeholder="...", break_on_hyphens=False
    )
  )


def _cell(
  axes: Axes, row: int, column: int, behaviors: Counter[str], note: str
) -> None:
  """Draws a cell of the table: stripes, the behaviors, and the note."""
  total, x = sum(behaviors.values()), float(column)
  gap = 0.03
  for behavior, color in BEHAVIORS.items():
    width = (1 - gap) * behaviors[behavior] / total
    if width:
      axes.bar(x, 1 - 2 * gap, width, row + gap, align="edge", color=color,
               alpha=0.3, linewidth=0)  # fmt: skip
    x += width
  axes.bar(column, 1 - 2 * gap, 1 - gap, row + gap, align="edge", color="none",
           edgecolor=GRID, linewidth=0.8)  # fmt: skip
  words = count_words(behaviors)
  middle = column + (1 - gap) / 2
  size = 12 if len(words) < 15 else 9 if len(words) < 24 else 7
  axes.text(middle, row + 0.36, words, ha="center", va="center", weight="bold",
            fontsize=size)  # fmt: skip
  axes.text(middle, row + 0.72, note, ha="center", va="center", fontsize=9.5)


def count_words(behaviors: Counter[str]) -> str:
  """Writes the behaviors of a cell: "kept", or "2 kept, 1 lost"."""
  if len(behaviors) == 1:
    return next(iter(behaviors))
  counts = [(behaviors[name], name) for name in BEHAVIORS if behaviors[name]]
  return ", ".join(f"{n} {name}" for n, name in counts)
