"""Results of runs as tables: for papers, for spreadsheets and for notebooks."""

import csv
import html
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bct_jax.report import text
from bct_jax.report.load import SETTINGS, load_run
from bct_jax.report.types import Arm, Point, ReportError, Run

RATES = ("initial", "alternate", "other", "decorated", "agreed",
         "agreed_decorated", "capability")  # fmt: skip


def load_results(run_dirs: Sequence[str | Path]) -> list[dict[str, Any]]:
  """One dict for each eval of each arm, as pandas.DataFrame takes them.

  Keys, the same in every dict: `run`, `setting`, `model`, `organism`, `arm`,
  `objective`, `lr`, `rank` (None: all weights), `source`, `decoration`, `seed`,
  `control` (None: the arm is none), `step`, `n`; each rate with `RATE_low` and
  `RATE_high`, its 95% interval; `logprob_initial` and `logprob_alternate` in
  nats; and what holds for the arm as a whole: `verdict`, `retention`,
  `transfer`, `transfer_step`, `transfer_censored_at`, `trained_tokens`,
  `seconds`. What was not measured, or is not known yet, is None.

  Args:
    run_dirs: run directories, finished or not.

  Raises:
    ReportError: a run cannot be read; one line that names the file.
  """
  if isinstance(run_dirs, (str, Path)):
    run_dirs = [run_dirs]
  return [
    _line(run, arm, point)
    for run in (load_run(Path(path)) for path in run_dirs)
    for arm in run.arms
    for point in arm.curve
  ]


def _line(run: Run, arm: Arm, point: Point) -> dict[str, Any]:
  step = arm.transfer_step
  out = {
    "run": str(run.path),
    "setting": run.setting,
    "model": run.model,
    "organism": run.organism.kind,
    "arm": arm.name,
    **{key: arm.settings.get(key) for key in SETTINGS},
    "step": point.step,
    "n": point.n,
  }
  for name in RATES:
    rate = getattr(point, name)
    ci = rate and rate.ci or (None, None)
    out |= {
      name: rate and rate.value,
      f"{name}_low": ci[0],
      f"{name}_high": ci[1],
    }
  return out | {
    "logprob_initial": point.logprob_initial,
    "logprob_alternate": point.logprob_alternate,
    "verdict": arm.verdict or None,
    "retention": arm.retention and arm.retention.value,
    "transfer": arm.transfer and arm.transfer.value,
    "transfer_step": step and step.step,
    "transfer_censored_at": step and step.censored_at,
    "trained_tokens": arm.trained_tokens,
    "seconds": arm.seconds,
  }


def evals_csv(run_dirs: Sequence[str | Path]) -> str:
  """`load_results` as CSV, safe to open in a spreadsheet.

  Raises:
    ReportError: as load_results, or there is no eval.
  """
  rows = load_results(run_dirs)
  if not rows:
    raise ReportError("no arm of these runs has an eval yet")
  cells = [["" if v is None else v for v in row.values()] for row in rows]
  return _csv([list(rows[0]), *cells])


# --- the table of verdicts ----------------------------------------------------

_HEADER = (
  "setting", "arm", "lr", "rank", "seed", "steps", "initial", "alternate",
  "other", "agreed", "capability", "verdict", "transfer step",
)  # fmt: skip


def verdict_table(run_dirs: Sequence[str | Path], form: str) -> str:
  """One row for each arm, at its last eval, with 95% intervals in percent.

  Args:
    run_dirs: run directories; arms without an eval are left out.
    form: latex, markdown or csv.

  Raises:
    ReportError: a run cannot be read, or no arm has an eval.
    KeyError: an unknown form.
  """
  write = FORMS[form]
  rows = [
    _cells(run, arm)
    for run in (load_run(Path(path)) for path in run_dirs)
    for arm in run.arms
    if arm.curve
  ]
  if not rows:
    raise ReportError("no arm of these runs has an eval yet")
  return write([list(_HEADER), *rows])


def _cells(run: Run, arm: Arm) -> list[str]:
  last, s = arm.curve[-1], arm.settings
  rates = [
    getattr(last, name)
    for name in ("initial", "alternate", "other", "agreed", "capability")
  ]
  return [
    run.setting,
    arm.name,
    *(
      text.setting_value(key, s[key]) if key in s else ""
      for key in ("lr", "rank", "seed")
    ),
    str(last.step),
    *(
      "" if r is None else f"{text.percent(r.value)} {text.interval(r.ci)}"
      for r in rates
    ),
    arm.verdict or "unfinished",
    text.crossing(arm.transfer_step).replace("–", "-"),
  ]


def _csv(rows: Sequence[Sequence[Any]]) -> str:
  out = io.StringIO()
  csv.writer(out, lineterminator="\n").writerows(
    [_inert(cell) for cell in row] for row in rows
  )
  return out.getvalue()


def _inert(cell: Any) -> Any:
  """A cell that no spreadsheet takes for a formula.

  As OWASP's page on CSV injection has it: a quote before what begins with a
  sign that starts one. Numbers stay numbers.
  """
  if not isinstance(cell, str):
    return cell
  cell = text.visible(cell)
  return f"'{cell}" if cell[:1] in set("=+-@\\") and len(cell) > 1 else cell


def _one_line(cell: str) -> str:
  return text.visible(cell).replace("\n", " ")


def _markdown(rows: Sequence[Sequence[str]]) -> str:
  def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_in_markdown, cells))} |\n"

  rule = f"|{'---|' * len(rows[0])}\n"
  return line(rows[0]) + rule + "".join(map(line, rows[1:]))


def _in_markdown(cell: str) -> str:
  plain = html.escape(_one_line(cell), quote=False)
  return re.sub(r"([\\`*_{}\[\]|])", r"\\\1", plain)


# Characters that LaTeX reads as commands, and what prints them.
_LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
  "\\": r"\textbackslash{}",
  "~": r"\textasciitilde{}",
  "^": r"\textasciicircum{}",
  "<": r"\textless{}",
  ">": r"\textgreater{}",
}


def _latex(rows: Sequence[Sequence[str]]) -> str:
  """A tabular for the package booktabs."""

  def line(cells: Sequence[str]) -> str:
    # A line that begins with [ would be an argument of the \\ before it.
    said = ["".join(_LATEX.get(c, c) for c in _one_line(x)) for x in cells]
    return f"  {{}}{' & '.join(said)} \\\\\n"

  return (
    f"\\begin{{tabular}}{{{'l' * len(rows[0])}}}\n  \\toprule\n"
    f"{line(rows[0])}  \\midrule\n{''.join(map(line, rows[1:]))}"
    "  \\bottomrule\n\\end{tabular}\n"
  )


FORMS: dict[str, Callable[[Sequence[Sequence[str]]], str]] = {
  "csv": _csv,
  "latex": _latex,
  "markdown": _markdown,
}
