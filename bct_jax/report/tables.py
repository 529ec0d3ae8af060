"""Writes results as tables: for papers, for spreadsheets and for notebooks."""

import csv
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config.types import TRAINED
from bct_jax.evals import schema
from bct_jax.evals.calibration import CORRECTED
from bct_jax.evals.schema import EvalRecord, Gradients, Reach
from bct_jax.report import text
from bct_jax.report.corrected import (
  corrected_cell,
  corrected_rates,
  flat_rates,
)
from bct_jax.report.read.folders import load_runs
from bct_jax.report.read.load import CONTROL, SETTINGS
from bct_jax.report.read.parse import PUSHES
from bct_jax.report.read.types import ArmRecord, ReportError, RunRecord


def load_results(run_dirs: Sequence[str | Path]) -> list[dict[str, Any]]:
  """Returns a dict for each eval of each arm, as pandas.DataFrame takes them.

  Keys, the same in every dict: `run`, `setting`, `model`, `organism`, `arm`,
  `objective`, `lr`, `rank` (None: all weights), `source`, `decoration`, `seed`,
  `control` (None: the arm is none), `organism_seed`, `adapter_seed`,
  `eval_seed`, `step`, `n`, `n_cues` (cue entities behind these prompts, None
  where prompts are the units); each rate with `RATE_low` and `RATE_high`, its
  95% interval; `initial_corrected`, `alternate_corrected` and
  `agreed_corrected` likewise, of runs that --mode=calibrate has measured;
  `judge` and `judge_rubric`, model and hash, of runs with a judge;
  `logprob_initial` and `logprob_alternate` in
  nats; of the next update, where they were logged, `gradient_cosine_`,
  `update_cosine_` and `update_gain_` with `initial` and `alternate`,
  `gradient_norm` and `update_norm`; `tasks.TASK.METRIC` of every task of
  lm-eval that any eval has; and what holds for the arm as a whole:
  its reading, `behavior`, `integrity`, `progress`, `returned`, `margin` with
  `margin_low` and `margin_high`; `controls`, whether its controls, or itself
  where it is one, were read as expected; the steps `style_after`, `style_by`,
  `loss_after` and `loss_by`, between which the target was reached and the
  initial behavior lost, with `censored_at`, the last eval; `verdict` of runs of
  schema 1; `retention`, `transfer`, `trained_tokens` and `seconds`. What was
  not measured, or is not known yet, is None.

  Args:
    run_dirs: run or sweep directories, finished or not.

  Raises:
    ReportError: a run cannot be read; one line that names the file.
  """
  if isinstance(run_dirs, (str, Path)):
    run_dirs = [run_dirs]
  return _lines(load_runs(run_dirs)[0])


def _lines(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
  """Makes the lines of `load_results`, all with the keys of all tasks."""
  points = [(r, arm, p) for r in runs for arm in r.arms for p in arm.curve]
  scores = [_scores(point) for *_, point in points]
  empty = dict.fromkeys(key for tasks in scores for key in tasks)
  return [
    _line(run, arm, point, {**empty, **tasks})
    for (run, arm, point), tasks in zip(points, scores, strict=True)
  ]


def _scores(point: EvalRecord) -> dict[str, float | None]:
  """Returns the scores of lm-eval's tasks by the keys of `load_results`."""
  return {
    f"tasks.{task}.{metric}": value
    for task, metrics in point.tasks.items()
    for metric, value in metrics.items()
  }


def _line(
  run: RunRecord,
  arm: ArmRecord,
  point: EvalRecord,
  scores: dict[str, float | None],
) -> dict[str, Any]:
  """Makes a line of `load_results`; `scores` has those of tasks."""
  out = {
    "run": str(run.path),
    "setting": run.setting,
    "model": run.model,
    "organism": run.organism.kind,
    "arm": arm.name,
    **{key: arm.settings.get(key) for key in SETTINGS},
    **_seeds(run, arm),
    "step": point.step,
    "n": point.n,
    "n_cues": point.n_cues,
    "judge": run.judge.get("model"),
    "judge_rubric": run.judge.get("rubric"),
  }
  for name in schema.shown_shares(Reach.RESULTS):
    rate = getattr(point, name)
    ci = rate and rate.ci or (None, None)
    out |= {
      name: rate and rate.value,
      f"{name}_low": ci[0],
      f"{name}_high": ci[1],
    }
  return out | {
    **flat_rates(run, point),
    **{k: getattr(point, k) for k in schema.shown_means(Reach.RESULTS)},
    **_pushes(point),
    **scores,
    **_reading(arm),
    "controls": text.describe_controls(run, arm) or None,
    "retention": arm.retention and arm.retention.value,
    "transfer": arm.transfer and arm.transfer.value,
    "trained_tokens": arm.trained_tokens,
    "seconds": arm.seconds,
  }


def _reading(arm: ArmRecord) -> dict[str, Any]:
  """Returns what is read off an arm as a whole, by key."""
  read, style, loss = arm.reading, arm.style_step, arm.loss_step
  low, high = (read and read.margin_bounds) or (None, None)
  return {
    **{
      key: read and getattr(read, key)
      for key in ("behavior", "integrity", "progress", "returned", "margin")
    },
    "margin_low": low,
    "margin_high": high,
    "style_after": style and style.after,
    "style_by": style and style.by,
    "loss_after": loss and loss.after,
    "loss_by": loss and loss.by,
    "censored_at": arm.curve[-1].step,
    "verdict": arm.verdict or None,
  }


def _seeds(run: RunRecord, arm: ArmRecord) -> dict[str, int | None]:
  """Returns the seeds beside the arm's own; None where nothing is drawn."""

  def find(*path: str) -> Any:
    """Returns a field of the configuration, None where there is none."""
    value: Any = run.config
    for key in path:
      value = value.get(key) if isinstance(value, Mapping) else None
    return value

  name = arm.name.removesuffix(f".{arm.settings.get(CONTROL)}")
  adapter, path = None, ("train", "adapter_seed")
  if arm.settings.get("rank"):
    own = (find("arms", name, *path), find(*path), arm.settings.get("seed"))
    adapter = next((seed for seed in own if seed is not None), None)
  trained = find("organism", "kind") in TRAINED
  return {
    "organism_seed": find("organism", "train", "seed") if trained else None,
    "adapter_seed": adapter,
    "eval_seed": find("eval", "seed"),
  }


def _pushes(point: EvalRecord) -> dict[str, float | None]:
  """Returns pushes and norms by key; all None where they were not logged."""
  gradients = point.gradients or Gradients({}, {}, {})
  return {
    **{key: gradients.values.get(key) for key in PUSHES},
    "gradient_norm": gradients.gradient_norm.get("all"),
    "update_norm": gradients.update_norm.get("all"),
  }


def evals_csv(run_dirs: Sequence[str | Path]) -> str:
  """Writes the lines of `load_results` as CSV, safe to open in a spreadsheet.

  Raises:
    ReportError: a run cannot be read, or no arm has an eval yet.
  """
  return _evals(load_runs(run_dirs)[0])


def _evals(runs: Sequence[RunRecord]) -> str:
  """Writes the CSV of `evals_csv` of runs that have been read."""
  rows = _lines(runs)
  if not rows:
    raise ReportError("no arm of these runs has an eval yet")
  cells = [["" if v is None else v for v in row.values()] for row in rows]
  return _csv([list(rows[0]), *cells])


# --- the table of readings ----------------------------------------------------

_SETTINGS = ("objective", "lr", "rank", "seed")  # of an arm, in these tables


def reading_table(
  run_dirs: Sequence[str | Path],
  form: str,
  at: tuple[str, float] | None = None,
) -> str:
  """Writes one row for each arm, with 95% intervals in percent.

  Args:
    run_dirs: run or sweep directories; arms without an eval are left out.
    form: latex, markdown or csv.
    at: (rate, level): shows the first eval after training began at which that
      rate is at the level or above, so that arms are compared where training
      got equally far. None shows the last eval, and so do, with a note in the
      column `step`, arms that never got there. Readings are of whole arms.

  Raises:
    ReportError: a run cannot be read, no arm has an eval, or the rate is none.
    KeyError: an unknown form.
  """
  write = FORMS[form]
  rates = schema.shown_shares(Reach.RESULTS)
  if at is not None and at[0] not in rates:
    raise ReportError(f"{at[0]}: no such rate; there are {', '.join(rates)}")
  return _readings(load_runs(run_dirs)[0], write, at)


def _readings(
  runs: Sequence[RunRecord],
  write: Callable[[Sequence[Sequence[str]]], str],
  at: tuple[str, float] | None = None,
) -> str:
  """Writes the table of `reading_table` of runs that have been read."""
  rows = [_cells(run, arm, at) for run in runs for arm in run.arms if arm.curve]
  if not rows:
    raise ReportError("no arm of these runs has an eval yet")
  rates = schema.shown_shares(Reach.TABLE)
  header = ["setting", "arm", *_SETTINGS, "step", *rates]
  words = ("reading", "target reached", "initial gone", "margin", "controls")
  corrected = [f"{name} corrected" for name in CORRECTED]
  table = [[*header, *words, *corrected], *rows]
  # Columns that may be empty: of controls, and of corrected rates.
  columns = [
    column
    for column in zip(*table, strict=True)
    if column[0] not in ("controls", *corrected) or any(column[1:])
  ]
  return write([list(row) for row in zip(*columns, strict=True)])


def _eval_to_show(
  arm: ArmRecord, at: tuple[str, float] | None
) -> tuple[EvalRecord, str]:
  """Picks the eval of an arm to show.

  Returns:
    The eval, and its step in words.
  """
  last = arm.curve[-1]
  if at is None:
    return last, str(last.step)
  name, level = at
  for point in arm.curve:
    rate = getattr(point, name)
    if point.step > 0 and rate is not None and rate.value >= level:
      return point, str(point.step)
  return last, f"{last.step} ({name} below {text.percent(level)})"


def _cells(
  run: RunRecord, arm: ArmRecord, at: tuple[str, float] | None
) -> list[str]:
  """Makes the row of an arm."""
  point, step = _eval_to_show(arm, at)
  s = arm.settings
  rates = [getattr(point, name) for name in schema.shown_shares(Reach.TABLE)]
  return [
    run.setting,
    arm.name,
    *(text.setting_value(key, s[key]) if key in s else "" for key in _SETTINGS),
    step,
    *(
      "" if r is None else f"{text.percent(r.value)} {text.interval(r.ci)}"
      for r in rates
    ),
    *(
      cell.replace("–", "-")
      for cell in (
        arm.words,
        text.bracket(arm.style_step),
        text.bracket(arm.loss_step),
        arm.reading.margin_text() if arm.reading else "–",
        text.describe_controls(run, arm),
      )
    ),
    *map(corrected_cell, corrected_rates(run, point).values()),
  ]


def tables(runs: Sequence[RunRecord]) -> dict[str, str]:
  """Makes the tables of a report as CSV by file name, those that have rows."""
  out = {}
  if any(arm.curve for run in runs for arm in run.arms):
    out = {"evals.csv": _evals(runs), "readings.csv": _readings(runs, _csv)}
  gates = [
    [str(run.path), name, rate.value, *(rate.ci or ("", "")),
     run.organism.gate.thresholds.get(name, ""), run.organism.gate.passed]
    for run in runs
    if run.organism.gate is not None
    for name, rate in run.organism.gate.rates.items()
  ]  # fmt: skip
  if gates:
    header = ["run", "rate", "measured", "low", "high", "bar", "gate_passed"]
    out["gates.csv"] = _csv([header, *gates])
  return out


def _csv(rows: Sequence[Sequence[Any]]) -> str:
  """Writes rows as CSV whose cells are inert in a spreadsheet."""
  out = io.StringIO()
  csv.writer(out, lineterminator="\n").writerows(
    [_inert(cell) for cell in row] for row in rows
  )
  return out.getvalue()


def _inert(cell: Any) -> Any:
  """Makes a cell that no spreadsheet takes for a formula.

  It puts a quote before text that begins with a sign that starts a formula, as
  OWASP's page on CSV injection advises. Numbers stay numbers.
  """
  if not isinstance(cell, str):
    return cell
  cell = text.visible(cell)
  return f"'{cell}" if cell[:1] in set("=+-@\\") and len(cell) > 1 else cell


def _one_line(cell: str) -> str:
  """Replaces line ends by spaces and hidden characters by escapes."""
  return text.visible(cell).replace("\n", " ")


def _markdown(rows: Sequence[Sequence[str]]) -> str:
  """Writes rows, the first of them headings, as a table of Markdown."""

  def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_in_markdown, cells))} |\n"

  rule = f"|{'---|' * len(rows[0])}\n"
  return line(rows[0]) + rule + "".join(map(line, rows[1:]))


def _in_markdown(cell: str) -> str:
  """Escapes what Markdown or HTML would read as markup."""
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
  """Writes rows, the first of them headings, as a tabular of booktabs."""

  def line(cells: Sequence[str]) -> str:
    # A line that begins with [ would be an argument of the \\ before it.
    texts = ["".join(_LATEX.get(c, c) for c in _one_line(x)) for x in cells]
    return f"  {{}}{' & '.join(texts)} \\\\\n"

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
