"""Runs today's scorers on the completions that a run saved: --mode=rescore.

A run keeps text and label of every completion, so that labels can be made again
when a scorer or a detector of decorations has changed, without sampling. The
files of the run stay as they are.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import (
  ConfigError,
  GateConfig,
  ReadingConfig,
  choose,
  from_dict,
)
from bct_jax.evals import schema, verdict
from bct_jax.evals.crossings import mean_losses
from bct_jax.evals.evaluate import summarize_rows
from bct_jax.evals.gate import check_gate
from bct_jax.evals.reading import Reading, read_arm
from bct_jax.evals.task_rows import task_rows
from bct_jax.infra import files
from bct_jax.infra.done_file import describe_damage
from bct_jax.infra.formats import percent
from bct_jax.infra.visible import visible
from bct_jax.modes.run_scorer import RunScorer, make_scorer
from bct_jax.report.read.records import Record, read_json, read_lines
from bct_jax.report.read.types import ReportError
from bct_jax.settings.decorations import DECORATIONS, Decoration

SHOWN = 5  # changed rows of an eval on the terminal; a file gets all


def run_rescore(
  workdir: Path | None, out: Path | None, grader: str | None = None
) -> None:
  """Labels the saved completions of a run again and prints what changed.

  For the gate and for each eval of each arm it prints how many rows have
  another label, reason or decoration now, and the rates before and after.
  Rewards are not made again.

  Args:
    workdir: the run directory.
    out: a new JSONL file for all changed rows; None writes none.
    grader: JSON of another setting.options.grader for the setting `file`; of
      the kind "judge" for any setting, maybe with fields of eval.judge.

  Raises:
    ConfigError: a flag is missing or wrong, or `out` is there already.
    ReportError: a file of the run is missing, damaged, or of another version of
      the setting.
    JudgeError: a judge is asked, and does not answer.
  """
  if workdir is None:
    raise ConfigError("--workdir is needed: the directory of the run")
  if out is not None and out.exists():
    raise ConfigError(f"--out={out}: is there already; name a new file")
  for line in describe_damage(workdir):
    print(f"warning: {workdir}: {visible(line)}", file=sys.stderr)
  records = list(rescore(workdir, grader))
  if not records:
    raise ReportError(f"{workdir}: no completions have been saved there yet")
  if out is not None:
    files.write_lines(out, records)
  print(visible("\n".join(map(_text, records))))


def rescore(
  workdir: Path, grader: str | None = None
) -> Iterator[dict[str, Any]]:
  """Yields a record for each saved eval and each reading; see `run_rescore`."""
  config = read_json(workdir / "config.json").object("config")
  scorer = make_scorer(workdir, config, grader)
  organism = None
  gates = {p.parent for p in workdir.glob("organisms/*/gate.json")}
  gates |= {p.parent for p in workdir.glob("organisms/*/rollouts.jsonl")}
  for path in sorted(folder / "rollouts.jsonl" for folder in gates):
    record, after = _gate(path, scorer)
    organism = after, record.pop("scored"), path.parent
    yield record
  for name, style in _styles(config).items():
    choose(style, DECORATIONS, f"arms.{name}.train.decoration")
    folder = workdir / "arms" / name
    decoration = DECORATIONS[style]
    yield from _arm(folder, name, scorer, decoration, config, organism)


def _styles(config: Record) -> dict[str, str]:
  """Returns the decoration of each arm by its name, controls among them."""
  if config.value.get("controls"):
    arms = from_dict(config.value).arms
    return {k: arms[k].train.decoration for k in sorted(arms)}
  shared = config.object("train").text("decoration")
  return {
    name: arm.get("train", {}).get("decoration", shared)
    for name, arm in sorted(config.object("arms").value.items())
  }


def _gate(
  path: Path, scorer: RunScorer
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Does what `_eval` does for the gate, and checks the gate again."""
  record = read_json(path.parent / "gate.json")
  bars = record.object("thresholds")
  asked = {
    "min_right": "right_floor",
    "min_capability": "capability_floor",
  }  # bars that an older gate does not have
  limits = GateConfig(
    min_initial=bars.share("initial"),
    max_confused=bars.share("confused"),
    min_agreed=bars.share("agreed"),
    enforce=record.flag("enforced"),
    base_rates=False,
    min_kept=record.share("min_kept") if record.has("min_kept") else 0.0,
    **{k: bars.share(v) if bars.has(v) else 0.0 for k, v in asked.items()},
  )
  base = None
  if (rollouts := path.parent / "base_rollouts.jsonl").exists():
    rows = scorer.rows(list(read_lines(rollouts)), DECORATIONS["plain"])
    base = summarize_rows(rows, 0)
  of = f"organisms/{path.parent.name}"
  change, after = _eval(of, 0, path, scorer, DECORATIONS["plain"], record)
  passed = check_gate(after, limits, base)["passed"]
  before = record.flag("passed")
  return {**change, "passed": {"before": before, "after": passed}}, after


def _arm(
  folder: Path,
  name: str,
  scorer: RunScorer,
  decoration: Decoration,
  config: Record,
  organism: tuple[dict[str, Any], list[dict[str, Any]], Path] | None,
) -> Iterator[dict[str, Any]]:
  """Yields a record for each eval of an arm, and one for its reading."""
  of, curve, rows = f"arms/{name}", [], []
  evals, done = folder / "evals.jsonl", folder / "done.json"
  # An arm that is done has evals: a lost file of them is an error.
  there = evals.exists() or done.exists()
  for record in read_lines(evals, print) if there else ():
    step = record.count("step")
    path = folder / "rollouts" / f"step_{step}.jsonl"
    change, after = _eval(of, step, path, scorer, decoration, record)
    curve.append(after)
    rows = change.pop("scored")
    yield change
  if not curve or not organism or not done.exists():
    return
  before = read_json(done)
  now = _read(folder, curve, organism[1:], rows, decoration, config)
  if before.has("reading"):
    then = before.object("reading").text("sentence")
    yield {"of": of, "reading": {"before": then, "after": now.sentence()}}
    return
  # Of schema 1: its own word by its own definition, and what would be read.
  word, _ = verdict.choose_verdict(curve, organism[0])
  then = before.text("verdict")
  yield {"of": of, "verdict": {"before": then, "after": word}}
  yield {"of": of, "reading": {"before": None, "after": now.sentence()}}


def _read(
  folder: Path,
  curve: Sequence[Mapping[str, Any]],
  organism: tuple[Sequence[Mapping[str, Any]], Path],
  after: Sequence[Mapping[str, Any]],
  decoration: Decoration,
  config: Record,
) -> Reading:
  """Reads an arm by the bars of its run, or by the defaults if it has none."""
  fields = config.object("reading").value if config.has("reading") else {}
  bars, (before, made) = ReadingConfig(**fields), organism
  then, now = task_rows(made, folder, curve[-1]["step"], bars)
  lines = [r.value for r in read_lines(folder / "metrics.jsonl")]
  losses = mean_losses(lines, [point["step"] for point in curve])
  styled = decoration.name != "plain"
  return read_arm(curve, [*before, *then], [*after, *now], bars, losses, styled)


def _eval(
  of: str,
  step: int,
  path: Path,
  scorer: RunScorer,
  decoration: Decoration,
  before: Record,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Labels the rows of one eval again.

  Returns:
    What changed, and the summary of the eval with the labels of today.
  """
  saved, changed = list(read_lines(path)), []
  rows = scorer.rows(saved, decoration)
  keys = ("label", "reason", "answered", "right", "decorated")
  for row, labelled in zip(saved, rows, strict=True):
    now = {k: labelled[k] for k in keys if k in labelled}
    # The gate's rows were saved without a decoration, old ones without answers.
    then = {k: row.value.get(k, now[k]) for k in now}
    if now != then:
      facts = {k: row.value[k] for k in ("id", "split", "text")}
      changed.append({**facts, "before": then, "after": now})
  missing = set(scorer.examples) - {(r["split"], r["id"]) for r in rows}
  if missing:
    raise ReportError(
      f"{path}: no completion of {min(missing)[1]!r}, which the config asks "
      "for; the run was made by another version of the setting, or was changed"
    )
  after = summarize_rows(rows, step)
  # A run from before something was measured lacks it.
  names = schema.shown_shares(schema.Reach.FILE)
  shares = [name for name in names if before.has(name)]
  record = {
    "of": of,
    "step": step,
    "rows": len(rows),
    "before": {k: before.share(k) for k in shares},
    "after": {k: after[k] for k in shares},
    "changed": changed,
    "scored": rows,
  }
  return record, after


def _text(record: Mapping[str, Any]) -> str:
  """Formats a record for the terminal."""
  for kind in ("verdict", "reading"):
    if kind in record:
      return f"{record['of']}: {kind} {_change(record[kind])}"
  changed, before = record["changed"], record["before"]
  moved = {k: v for k, v in record["after"].items() if v != before[k]}
  parts = [
    f"{k} {percent(before[k])} -> {percent(v)}" for k, v in moved.items()
  ]
  if "passed" in record:
    outcomes = {k: _PASSED[v] for k, v in record["passed"].items()}
    parts.append(f"the gate {_change(outcomes)}")
  lines = [
    f"{record['of']} step {record['step']}: {len(changed)} of "
    f"{record['rows']} rows changed; {', '.join(parts) or 'the same rates'}"
  ]
  for row in changed[:SHOWN]:
    then, now = (
      f"{row[k]['label']} {row[k]['reason']}".strip()
      + (", right" if row[k].get("right") else "")
      + (", decorated" if row[k]["decorated"] else "")
      for k in ("before", "after")
    )
    lines.append(f"  {row['id']}: {then} -> {now}: {row['text'][:80]!r}")
  if len(changed) > SHOWN:
    lines.append(f"  and {len(changed) - SHOWN} more, see --out")
  return "\n".join(lines)


_PASSED = {True: "passed", False: "failed"}


def _change(values: Mapping[str, Any]) -> str:
  """Formats a value before and after."""
  before, after = values["before"], values["after"]
  if before == after:
    return f"{before}, as before"
  return after if before is None else f"{before} -> {after}"
