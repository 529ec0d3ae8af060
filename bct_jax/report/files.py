"""The figures and tables of a report as files beside it."""

import dataclasses
import re
from collections.abc import Iterator, Sequence

from bct_jax.report import export, text
from bct_jax.report.overview import Overview
from bct_jax.report.picture import Picture
from bct_jax.report.types import Run
from bct_jax.report.view import RunView


def contents(
  runs: Sequence[Run], views: Sequence[RunView], overview: Overview | None
) -> Iterator[tuple[str, bytes]]:
  """(name, content) of every figure as SVG and PNG and every table as CSV."""
  for name, table in export.tables(runs).items():
    yield name, table.encode("utf-8")
  used: dict[str, int] = {}
  for name, picture in _pictures(views, overview):
    # Names that differ in what a file name cannot hold.
    used[name] = used.get(name, 0) + 1
    number = f"-{used[name]}" if used[name] > 1 else ""
    yield f"{name}{number}.svg", picture.svg().encode("utf-8")
    yield f"{name}{number}.png", picture.png()


def _pictures(
  views: Sequence[RunView], overview: Overview | None
) -> Iterator[tuple[str, Picture]]:
  if overview is not None:
    if overview.verdicts.picture is not None:
      yield "all-verdicts", overview.verdicts.picture
    for part in overview.parts:
      for panel in part.panels:
        if panel.picture is not None:
          yield f"all-{_plain(part.name)}-{panel.name}", panel.picture
  for view in views:
    run = text.base(str(view.run.path))
    for arm in view.arms:
      names = dict.fromkeys((_plain(run), _plain(arm.arm.name)))
      for field in dataclasses.fields(arm):
        value = getattr(arm, field.name)
        if isinstance(value, Picture):
          kind = field.name.removesuffix("_svg")
          yield "-".join((*names, kind)), value


def _plain(name: str) -> str:
  return re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:60].strip("._") or "unnamed"
