"""Compares a run's labels with those that a person gives: --mode=calibrate.

The first call writes a sample of answers, without their labels, as a CSV and as
a page. Given that CSV with labels, a second call measures how often the scorer,
a judge or any other, is right. The report then shows rates corrected by that.
"""

import csv
import io
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import ConfigError
from bct_jax.evals.calibration import (
  CORRECTED,
  Labelled,
  measure_agreement,
  measure_errors,
)
from bct_jax.infra import files
from bct_jax.infra.formats import interval, percent
from bct_jax.report.answers_page import render_answers
from bct_jax.report.read.calibration import FILE
from bct_jax.report.read.records import Record, read_json, read_lines
from bct_jax.report.read.types import ReportError
from bct_jax.report.tables import FORMS

FOLDER = "calibration"  # of a run directory
# What a person may say of an answer to a prompt of a split.
LABELS = {
  "eval": ("initial", "alternate", "other"),
  "heldout": ("agreed", "other"),
}
LEAST, MOST, USUAL = 50, 200, 100
_COLUMN = "label"


def run_calibrate(
  workdir: Path | None, labels: Path | None, n: int | None
) -> None:
  """Writes answers to label, or measures the scorer by such labels.

  Args:
    workdir: the run directory.
    labels: the CSV with labels; None writes one without.
    n: how many answers are written.

  Raises:
    ConfigError: a flag is wrong, or the answers were written before.
    ReportError: a file of the run cannot be read.
    ValueError: the CSV has a wrong, a missing or a repeated row; the message
      names file and line.
  """
  if workdir is None:
    raise ConfigError("--workdir is needed: the directory of the run")
  if labels is None:
    print(write_answers(workdir, USUAL if n is None else n))
  else:
    if n is not None:
      raise ConfigError("--n: not with --labels, which has its own answers")
    print(measure_labels(workdir, labels))


def write_answers(workdir: Path, n: int) -> str:
  """Writes a sample of a run's answers for labelling.

  The sample has as many answers of each label, in each split, as there are, up
  to an equal share. Equal answers to one prompt count once, with the number of
  them as weight.

  Args:
    workdir: the run directory.
    n: how many; fewer if the run has no more.

  Returns:
    What was written, for the terminal.
  """
  if not LEAST <= n <= MOST:
    raise ConfigError(f"--n={n}: must be from {LEAST} to {MOST}")
  folder = workdir / FOLDER
  if folder.exists():
    raise ConfigError(
      f"{folder}: is there already; label its answers.csv and give it as "
      "--labels, or remove the folder"
    )
  config = read_json(workdir / "config.json").object("config")
  seed = config.object("eval").count("seed")
  sample = _draw(_collect(workdir), n, seed)
  for number, row in enumerate(sample, 1):
    row["answer"] = number
  columns = ["answer", "split", "prompt", "reply", _COLUMN]
  cells = ([row.get(k, "") for k in columns] for row in sample)
  files.write_text(folder / "answers.csv", FORMS["csv"]([columns, *cells]))
  files.write_text(folder / "answers.html", render_answers(sample, LABELS))
  files.write_lines(folder / "sample.jsonl", sample)
  said = "; ".join(f"{k}: {', '.join(v)}" for k, v in LABELS.items())
  return (
    f"wrote {len(sample)} answers: {folder / 'answers.csv'}, and "
    f"{folder / 'answers.html'} to read them in\nfill in its column "
    f"{_COLUMN!r} ({said}), then add --labels={folder / 'answers.csv'}"
  )


def measure_labels(workdir: Path, labels: Path) -> str:
  """Measures a scorer by a person's labels, and writes calibration.json.

  Returns:
    What was measured, for the terminal.
  """
  path = workdir / FOLDER / "sample.jsonl"
  if not path.exists():
    raise ConfigError(
      f"{path}: missing; without --labels this command writes answers to label"
    )
  sample = {row.count("answer"): row for row in read_lines(path)}
  said = _read_labels(labels, sample)
  answers: dict[str, list[Labelled]] = {split: [] for split in LABELS}
  for number, row in sample.items():
    labelled = Labelled(row.number("weight"), row.text("scorer"), said[number])
    answers[row.text("split")].append(labelled)
  agreement = {k: measure_agreement(v) for k, v in answers.items() if v}
  errors = {k: measure_errors(answers[s], k) for k, s in CORRECTED.items()}
  result = {
    "labels": files.digest(sorted(said.items()))[:16],
    "splits": {k: v.to_json() for k, v in agreement.items()},
    "rates": {k: v.to_json() for k, v in errors.items() if v is not None},
  }
  files.write_json(workdir / FILE, result)
  lines = []
  for split, found in agreement.items():
    kappa = "not defined: all have one label"
    if found.kappa is not None and found.kappa_ci is not None:
      low, high = found.kappa_ci
      kappa = f"{found.kappa:.2f} [{low:.2f}, {high:.2f}]"
    lines.append(
      f"{split}: {found.n} answers, agreement {percent(found.share.value)}, "
      f"Cohen's kappa {kappa}"
    )
  for label, found in errors.items():
    if found is None:
      lines.append(f"  {label}: not measured: by hand all have it, or none")
      continue
    shares = (
      f"{name} {percent(s.value)} {interval(s.ci)}"
      for name, s in (
        ("sensitivity", found.sensitivity),
        ("specificity", found.specificity),
      )
    )
    lines.append(f"  {label}: {', '.join(shares)}")
  return "\n".join([*lines, f"wrote {workdir / FILE}; reports show it"])


def _collect(workdir: Path) -> list[dict[str, Any]]:
  """Lists the different answers of a run, each with how often it is there.

  Raises:
    ReportError: there are none, or a file cannot be read.
  """
  found: dict[tuple, dict[str, Any]] = {}
  paths = [
    *sorted(workdir.glob("organisms/*/rollouts.jsonl")),
    *sorted(workdir.glob("arms/*/rollouts/step_*.jsonl")),
  ]
  for path in paths:
    for row in () if path.name.endswith(".partial.jsonl") else read_lines(path):
      split, label = row.text("split"), row.text("label")
      if split not in LABELS:
        continue
      turns = [m.text("content") for m in row.objects("prompt")]
      key = split, row.text("id"), row.text("text"), label
      new = {
        "split": split,
        "prompt": "\n\n".join(turns),
        "reply": row.text("text"),
        "scorer": label,
        "weight": 0.0,
      }
      found.setdefault(key, new)["weight"] += 1.0
  if not found:
    raise ReportError(f"{workdir}: no answers have been saved there yet")
  return list(found.values())


def _draw(
  answers: Sequence[Mapping[str, Any]], n: int, seed: int
) -> list[dict[str, Any]]:
  """Draws answers from strata of their labels.

  What a stratum has too little of goes to the others. The weights grow by the
  share of a stratum that was drawn.
  """
  strata: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
  for answer in answers:
    key = answer["split"], answer["scorer"]
    strata.setdefault(key, []).append(answer)
  rng, out, left = random.Random(f"calibrate/{seed}"), [], n
  by_size = sorted(strata.items(), key=lambda item: (len(item[1]), item[0]))
  for place, (_, rows) in enumerate(by_size):
    size = min(len(rows), left // (len(by_size) - place))
    left -= size
    for row in rng.sample(rows, size):
      out.append({**row, "weight": row["weight"] * len(rows) / size})
  rng.shuffle(out)
  # Prompts of a split are judged alike, so they come together.
  return sorted(out, key=lambda row: row["split"])


def _read_labels(path: Path, sample: Mapping[int, Record]) -> dict[int, str]:
  """Reads a CSV with a label for each answer.

  Returns:
    The label by the number of the answer.

  Raises:
    ValueError: a row is wrong, missing or there twice; names file and line.
  """
  out: dict[int, str] = {}
  for where, row in _read_csv(path):
    number = row["answer"].strip()
    if not number.isdecimal() or int(number) not in sample:
      raise ValueError(
        f"{where}: answer = {number!r}: is none of the {len(sample)} that were "
        "written"
      )
    key = int(number)
    if key in out:
      raise ValueError(f"{where}: answer {key} is there twice")
    split, label = sample[key].text("split"), row[_COLUMN].strip().lower()
    if label not in LABELS[split]:
      raise ValueError(
        f"{where}: {_COLUMN} = {label!r}: of {split} answers it must be one of "
        f"{', '.join(LABELS[split])}"
      )
    out[key] = label
  if missing := sorted(sample.keys() - out.keys()):
    raise ValueError(
      f"{path}: {len(missing)} answers have no row, the first is {missing[0]}"
    )
  return out


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
  """Yields the rows of a CSV, each with file and line, as spreadsheets save it.

  Raises:
    ValueError: it cannot be read, or lacks a column.
  """
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except OSError as e:
    raise ValueError(f"{path}: cannot be read: {e.strerror}") from None
  except UnicodeDecodeError as e:
    raise ValueError(f"{path}: not UTF-8 at byte {e.start}") from None
  first = text.partition("\n")[0]
  separator = max(",;\t", key=first.count)
  reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
  header = [name.strip().lower() for name in next(reader, [])]
  for name in ("answer", _COLUMN):
    if header.count(name) != 1:
      raise ValueError(f"{path}:1: needs one column {name!r}, has {header}")
  line = reader.line_num + 1
  for cells in reader:
    where, line = f"{path}:{line}", reader.line_num + 1
    if not any(cell.strip() for cell in cells):
      continue
    if len(cells) != len(header):
      raise ValueError(
        f"{where}: has {len(cells)} cells, and must have {len(header)}"
      )
    yield where, dict(zip(header, cells, strict=True))
