"""Makes the figures and tables of a report as files beside it."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from bct_jax.report import tables, text
from bct_jax.report.draw.picture import Picture
from bct_jax.report.overview_page import Overview
from bct_jax.report.read.types import OrganismRecord, RunRecord
from bct_jax.report.run_page import RunView


def contents(
  runs: Sequence[RunRecord], views: Sequence[RunView], overview: Overview | None
) -> Iterator[tuple[str, bytes]]:
  """Makes every figure as SVG and PNG and every table as CSV.

  Yields:
    Name and content of a file.
  """
  for name, table in tables.tables(runs).items():
    yield name, table.encode("utf-8")
  used: dict[str, int] = {}
  for name, picture, organisms in _pictures(runs, views, overview):
    # Names that differ in what a file name cannot hold.
    used[name] = used.get(name, 0) + 1
    number = f"-{used[name]}" if used[name] > 1 else ""
    picture = picture.captioned(text.caption(organisms))
    yield f"{name}{number}.svg", picture.svg().encode("utf-8")
    yield f"{name}{number}.png", picture.png()


def _pictures(
  runs: Sequence[RunRecord], views: Sequence[RunView], overview: Overview | None
) -> Iterator[tuple[str, Picture, Sequence[OrganismRecord]]]:
  """Lists the figures of a report.

  Yields:
    Name of the file, figure, and the organisms of the arms that it shows.
  """
  if overview is not None:
    if overview.readings.picture is not None:
      organisms = [run.organism for run in runs]
      yield "all-readings", overview.readings.picture, organisms
    for part in overview.parts:
      for panel in part.panels:
        if panel.picture is not None:
          name = f"all-{_plain(part.name)}-{panel.name}"
          yield name, panel.picture, part.organisms
  for view in views:
    run = text.base(str(view.run.path))
    for arm in view.arms:
      names = dict.fromkeys((_plain(run), _plain(arm.arm.name)))
      for field in dataclasses.fields(arm):
        value = getattr(arm, field.name)
        if isinstance(value, Picture):
          kind = field.name.removesuffix("_svg")
          yield "-".join((*names, kind)), value, [view.run.organism]


def _plain(name: str) -> str:
  """Replaces what a file name cannot hold; at most 60 characters."""
  return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60].strip("._") or "unnamed"
