"""Writes a self-contained HTML report of finished and unfinished runs.

No module of the report imports jax, so that results can be read anywhere.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bct_jax.evals.schema import Reach, shown_shares
from bct_jax.infra import files
from bct_jax.infra.exit_codes import OF_MACHINE
from bct_jax.report.read.folders import load_runs
from bct_jax.report.read.load import load_run
from bct_jax.report.read.types import ReportError

if TYPE_CHECKING:
  import jinja2

OPEN_RUNS = 3  # with more than this, each is folded

__all__ = ["ReportError", "write_figure", "write_report"]


def write_report(
  run_dirs: Sequence[Path],
  out: Path,
  figures_dir: Path | None = None,
  reload: float | None = None,
) -> Path:
  """Writes one HTML file about all the runs; it needs no network.

  The same runs give the same bytes.

  Args:
    run_dirs: directories of runs or of sweeps, finished or not.
    out: the file to write, whole or not at all.
    figures_dir: a folder for every figure of the page as SVG and PNG, and its
      tables as CSV; made if it is not there.
    reload: seconds after which an open page loads the file again; None never.

  Returns:
    `out`.

  Raises:
    ReportError: a run cannot be read; one line that names the file.
  """
  # Drawing imports matplotlib, which tables and `load_results` do without.
  from bct_jax.report import arm_table, browser, figure_files, run_page
  from bct_jax.report.headline import make_headline
  from bct_jax.report.overview_page import make_overview

  if not run_dirs:
    raise ReportError("no run directory given")
  runs, waiting = load_runs(run_dirs, strict=reload is not None)
  if not runs:
    raise ReportError("; ".join(waiting) or f"{run_dirs[0]}: has no run yet")
  views, overview = run_page.make_run_views(runs), make_overview(runs)
  page = make_environment().get_template("template.html.j2")
  html = page.render(
    runs=views,
    shares={
      "line": shown_shares(Reach.LINE),
      "table": shown_shares(Reach.TABLE),
    },
    headline=make_headline(runs),
    cells=arm_table.make_cells(views),
    fold_runs=len(views) > OPEN_RUNS,
    overview=overview,
    unfinished=sum(not run.finished for run in runs),
    waiting=waiting,
    browser=browser.make_browser(runs),
    parts=browser.page_parts(),
    reload=reload,
  )
  if figures_dir is not None:
    for name, content in figure_files.contents(runs, views, overview):
      _write(Path(figures_dir) / name, content)
  return _write(Path(out), html.encode("utf-8"))


def write_figure(run_dir: Path, out: Path) -> Path:
  """Writes the curves of a run's arms side by side as a PNG.

  Returns:
    `out`.

  Raises:
    ReportError: the run cannot be read, or no arm has an eval.
  """
  from bct_jax.report.draw import arm_curves

  return _write(Path(out), arm_curves.draw_png(load_run(Path(run_dir))))


def make_environment() -> "jinja2.Environment":
  """Makes the template environment, which escapes all that it prints."""
  import jinja2
  from markupsafe import Markup

  from bct_jax.report import text

  def finalize(value: object) -> object:
    # All that a template prints passes here, so no string can be forgotten:
    # hidden characters become escapes, then autoescape does the rest.
    if isinstance(value, str) and not isinstance(value, Markup):
      return text.visible(value)
    return value

  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    finalize=finalize,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters.update(
    show=text.show,
    percent=text.percent,
    interval=text.interval,
    fraction=text.fraction,
    number=text.number,
    share=text.share,
  )
  return environment


def _write(out: Path, content: bytes) -> Path:
  """Writes a file whole or not at all.

  Raises:
    OSError: the disk is full or fails.
    ReportError: any other reason.
  """
  try:
    files.write_bytes(out, content)
  except OSError as e:
    if e.errno in OF_MACHINE:
      raise
    raise ReportError(f"{out}: cannot be written: {e.strerror}") from None
  return out
