"""Makes the table of the arms of several runs."""

import dataclasses
import math
from collections.abc import Sequence

from bct_jax.report.read.load import SETTINGS
from bct_jax.report.run_page import ArmView, RunView, shared_settings


@dataclasses.dataclass(frozen=True)
class Cells:
  """Holds the table of the arms of several runs.

  Attributes:
    columns: what tells the arms apart: run, setting, model, names of settings.
    rows: each arm with its run, ordered by these.
  """

  columns: tuple[str, ...]
  rows: list[tuple[RunView, ArmView]]


def make_cells(views: Sequence[RunView]) -> Cells:
  """Makes the table of the arms of all runs."""
  rows = [(view, arm) for view in views for arm in view.arms]
  columns = []
  if len({arm.arm.name for _, arm in rows}) < len(rows):
    columns.append("run")
  for name in ("setting", "model"):
    if len({getattr(view.run, name) for view, _ in rows}) > 1:
      columns.append(name)
  settings = [arm.settings for _, arm in rows]
  same = shared_settings(settings)
  varied = [
    k for k in SETTINGS if k not in same and any(k in s for s in settings)
  ]

  def place(row: tuple[RunView, ArmView]) -> tuple:
    """Orders by numbers as numbers: 3e-5 stands before 1e-4."""
    view, arm = row
    found = [arm.arm.settings.get(key) for key in varied]
    numbers = [x if isinstance(x, int | float) else math.inf for x in found]
    return view.run.setting, view.run.model, *numbers, [*map(str, found)]

  return Cells((*columns, *varied), sorted(rows, key=place))
