"""Reads a run directory into a `RunRecord`, and checks it.

A finished run must be whole: each missing or damaged file is an error that
names it. An unfinished run is shown as far as it goes, with notes that say so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from bct_jax.evals.crossings import GONE, find_crossing
from bct_jax.evals.schema import EvalRecord
from bct_jax.infra import done_file, ledger
from bct_jax.report.read import parse, records
from bct_jax.report.read.calibration import read_calibration
from bct_jax.report.read.ending import ending_of
from bct_jax.report.read.types import (
  ArmRecord,
  OrganismRecord,
  ReportError,
  RunRecord,
  TrainStep,
)
from bct_jax.settings import list_caveats

VERDICTS = ("retained", "transferred", "degraded", "inconclusive")
CONTROL = "control"  # the key that says which control of another an arm is
SETTINGS = ("objective", "lr", "rank", "source", "decoration", "seed", CONTROL)
T = TypeVar("T", EvalRecord, TrainStep)


def load_run(path: Path) -> RunRecord:
  """Reads one run directory.

  Args:
    path: the directory, of a run that is finished or not.

  Raises:
    ReportError: one line naming the file and what is wrong with it.
  """
  path = Path(path)
  if not path.is_dir():
    raise ReportError(f"{path}: no such run directory")
  config = records.read_json(path / "config.json")
  notes: list[str] = []
  result, env = None, {}
  if (path / "result.json").exists():
    result = records.read_json(path / "result.json")
  if result is not None or (path / "env.json").exists():
    env = records.read_json(path / "env.json").value
  else:
    notes.append("env.json is not there yet.")
  settings = config.object("config").value
  setting = settings.get("setting")
  arm_records = {} if result is None else _arm_records(result)
  folders = {p.name for p in path.glob("arms/*")}
  folders = {name for name in folders if not name.endswith(ledger.ASIDE)}
  unlisted = sorted(folders - set(arm_records))
  if result is not None and unlisted:
    notes.append(f"result.json does not list these arms: {', '.join(unlisted)}")
  notes += list_caveats(_name_of(setting), _child(setting, "options"))
  arms = _arms(path, settings, arm_records | dict.fromkeys(unlisted), notes)
  if result is None:
    notes.insert(0, "This run is unfinished: there is no result.json yet.")
    waiting = [x for x in _planned_arms(settings) if x not in folders]
    if waiting:
      notes.append(f"These arms have not begun: {', '.join(waiting)}")
    setting = _name_of(setting)
    model = _name_of(env.get("model") or settings.get("model"))
    organism = _unfinished_organism(path, notes)
  else:
    setting, model = result.text("setting"), result.text("model")
    organism = _organism(path, result.object("organism"))
    notes += parse.growth(result)
  damage = done_file.describe_damage(path)
  return RunRecord(
    path=path,
    finished=result is not None,
    setting=setting,
    model=model,
    organism=organism,
    arms=arms,
    config=settings,
    overrides=config.object("overrides").value,
    env=env,
    notes=(*ending_of(path), *damage, *notes),
    damage=tuple(damage),
    leaks=() if result is None else parse.leaks(result),
    judge={} if result is None else _child(result.value, "judge"),
    calibration=read_calibration(path),
  )


def _name_of(value: Any) -> str:
  """Returns the name in a string, or in an object with a name or a path.

  "": there is none.
  """
  if isinstance(value, Mapping):
    value = value.get("name") or value.get("path")
  return value if isinstance(value, str) else ""


def _child(tree: Any, key: str) -> Mapping[str, Any]:
  """Returns the object of a key; empty where there is none."""
  value = tree.get(key) if isinstance(tree, Mapping) else None
  return value if isinstance(value, Mapping) else {}


def _planned_arms(config: Mapping[str, Any]) -> dict[str, str]:
  """Maps all arms of a configuration to the control that each is, or ""."""
  controls = ("", *config.get("controls", ()))
  return {
    f"{arm}.{control}" if control else arm: control
    for arm in _child(config, "arms")
    for control in controls
  }


def _planned_settings(config: Mapping[str, Any], name: str) -> dict[str, Any]:
  """Returns what the configuration says of an arm: shared fields and its own.

  Of a control it returns which one it is alone: the rest follows from the arm
  it belongs to, and is read when the control is done.
  """
  if control := _planned_arms(config).get(name):
    return {CONTROL: control}
  arm = _child(_child(config, "arms"), name)
  fields = {}
  for group in ("train", "optim"):
    fields.update(_child(config, group), **_child(arm, group))
  return {key: fields[key] for key in SETTINGS if key in fields}


def _directory_name(record: records.Record, key: str) -> str:
  """Reads the name of a directory, which must not lead out of its parent."""
  name = record.text(key)
  if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
    raise record.error(key, "a plain directory name")
  return name


def _arm_records(result: records.Record) -> dict[str, records.Record]:
  """Maps the arms that result.json lists to what it says of each."""
  out: dict[str, records.Record] = {}
  for arm in result.objects("arms"):
    name = _directory_name(arm, "name")
    if name in out:
      raise arm.error("name", "unique")
    out[name] = arm
  return out


def _organism(path: Path, record: records.Record) -> OrganismRecord:
  """Reads the organism of a finished run."""
  name = _directory_name(record, "hash")
  # result.json has the same content. The file is read all the same, so that a
  # finished run that lost it is an error.
  records.read_json(path / "organisms" / name / "gate.json")
  return OrganismRecord(
    kind=record.text("kind"),
    hash=name,
    provenance=record.object("provenance").value,
    gate=parse.gate(record.object("gate")),
    install=record.object("made").value if record.has("made") else {},
  )


def _unfinished_organism(path: Path, notes: list[str]) -> OrganismRecord:
  """Reads what is there of the organism, and notes what is not."""
  gates = sorted(path.glob("organisms/*/gate.json"))
  if len(gates) != 1:
    notes.append(
      f"{len(gates)} organisms have a gate.json, so no gate is shown."
      if gates
      else "The gate has not been passed yet: no organism has a gate.json."
    )
    return OrganismRecord("", "", {}, None)
  gate = parse.gate(records.read_json(gates[0]))
  return OrganismRecord("", gates[0].parent.name, {}, gate)


def _arms(
  path: Path,
  config: Mapping[str, Any],
  arm_records: Mapping[str, records.Record | None],
  notes: list[str],
) -> tuple[ArmRecord, ...]:
  """Reads the arms of a run, in the order of its configuration.

  Args:
    path: the run directory.
    config: of the run.
    arm_records: what result.json says of each arm, None where it says nothing.
    notes: gets what a reader must know.
  """
  planned = list(_planned_arms(config))
  arms = []
  for name in sorted(
    arm_records,
    key=lambda n: planned.index(n) if n in planned else len(planned),
  ):
    plan = _planned_settings(config, name)
    arms.append(_arm(path, name, arm_records[name], plan, notes))
    check = arms[-1].check
    if check is not None and check.status == "missed":
      notes.append(f"Arm {name}: {check.sentence()}.")
  return tuple(arms)


class _ArmFiles:
  """Reads the files of an arm, and notes which an unfinished arm lacks.

  An arm that is still training, or was killed, may lack its last files and end
  in half a line. A finished arm may not.

  Attributes:
    missing: names of the files that were asked for and are not there yet.
  """

  def __init__(self, folder: Path, finished: bool, notes: list[str]):
    """Begins with no missing file; `notes` gets a line for a torn line."""
    self.missing: list[str] = []
    self._folder, self._finished = folder, finished
    self._on_torn_line = None if finished else notes.append

  def lines(self, name: str) -> list[records.Record]:
    """Returns the records of a file; none if it is missing."""
    if self._is_missing(name):
      return []
    return list(records.read_lines(self._folder / name, self._on_torn_line))

  def text(self, name: str) -> str:
    """Returns the text of a file; "" if it is missing."""
    if self._is_missing(name):
      return ""
    return records.read_text(self._folder / name)

  def _is_missing(self, name: str) -> bool:
    """Says whether an unfinished arm lacks a file, and keeps its name."""
    missing = not self._finished and not (self._folder / name).exists()
    if missing:
      self.missing.append(name)
    return missing


def _arm(
  path: Path,
  name: str,
  record: records.Record | None,
  plan: Mapping[str, Any],
  notes: list[str],
) -> ArmRecord:
  """Reads one arm from its files, and from its part of result.json.

  Args:
    path: the run directory.
    name: of the arm.
    record: its part of result.json, None where there is none.
    plan: what the configuration says of it.
    notes: gets what a reader must know.
  """
  folder = path / "arms" / name
  finished = (folder / "done.json").exists()
  if not finished:
    notes.append(f"Arm {name} is unfinished: it has no done.json.")
  elif record is None:
    done = records.read_json(folder / "done.json")
    record = done if done.has("reading") or done.has("verdict") else None
  files = _ArmFiles(folder, finished, notes)
  evals = [parse.eval_record(r) for r in files.lines("evals.jsonl")]
  curve = _by_step(evals, folder / "evals.jsonl", notes)
  if record is not None and record.has("curve"):
    curve = _judged_curve(record, curve, name, notes)
  steps = [parse.train_step(r) for r in files.lines("metrics.jsonl")]
  metrics = _by_step(steps, folder / "metrics.jsonl", notes)
  rollouts = {}
  for step in (point.step for point in curve):
    rows = files.lines(f"rollouts/step_{step}.jsonl")
    rollouts[step] = tuple(parse.row(row, step) for row in rows)
  mask_audit = files.text("mask_audit.txt")
  return ArmRecord(
    name=name,
    finished=finished,
    curve=curve,
    metrics=metrics,
    rollouts={step: rows for step, rows in rollouts.items() if rows},
    mask_audit=mask_audit,
    missing_files=tuple(files.missing),
    **{**_crossings(curve), **_outcome(record, plan)},
  )


STYLE = 0.9  # of a run without a reading, which names its own


def _crossings(curve: tuple[EvalRecord, ...]) -> dict[str, Any]:
  """Finds the style step and the loss step on a curve."""
  steps = [point.step for point in curve]
  if not steps:
    return {"style_step": None, "loss_step": None}
  styles = [p.agreed_decorated for p in curve]
  shown = [rate is not None and rate.value >= STYLE for rate in styles]
  gone = [point.initial.value < GONE for point in curve]
  return {
    "style_step": find_crossing(steps, shown),
    "loss_step": find_crossing(steps, gone),
  }


def _judged_curve(
  record: records.Record,
  curve: tuple[EvalRecord, ...],
  name: str,
  notes: list[str],
) -> tuple[EvalRecord, ...]:
  """Reads the curve that the reading rests on, and compares it with the file's.

  Args:
    record: the arm's part of result.json.
    curve: what evals.jsonl says.
    name: of the arm.
    notes: gets a line if the two differ.
  """
  judged = tuple(parse.eval_record(r) for r in record.objects("curve"))
  if judged != curve:
    notes.append(
      f"Arm {name}: evals.jsonl does not say what result.json does; the"
      " curve shown is the one of result.json, on which the verdict rests."
    )
  return judged


def _outcome(
  record: records.Record | None, plan: Mapping[str, Any]
) -> dict[str, Any]:
  """Reads the fields of an `ArmRecord` that only a finished arm has for sure.

  Args:
    record: the arm's part of result.json, or its done.json; None for neither.
    plan: the settings to show where there is no record.
  """
  if record is None:
    empty = ("reading", "retention", "transfer", "deployment_length")
    rest = {"settings": plan, "verdict": "", "why": "", "returned": False}
    return {**rest, **dict.fromkeys((*empty, "trained_tokens", "seconds"))}
  settings: dict[str, Any] = {
    "objective": record.text("objective"),
    "lr": record.number("lr"),
    "rank": record.count("rank") if record.has("rank") else None,
    "source": record.text("source"),
    "decoration": record.text("decoration") if record.has("decoration") else "",
    "seed": record.count("seed"),
  }
  tokens, seconds = "trained_tokens", "seconds"
  if record.has(CONTROL):
    settings[CONTROL] = record.text(CONTROL)
  if record.has("reading"):
    read = parse.reading(record.object("reading"))
    words = {
      "verdict": "",
      "why": read.sentence(),
      "returned": read.returned,
      "style_step": read.style_step,
      "loss_step": read.loss_step,
    }
  else:
    read = None
    words = {
      "verdict": record.text("verdict", VERDICTS),
      "why": record.text("why") if record.has("why") else "",
      "returned": record.flag("returned") if record.has("returned") else False,
    }
  return {
    "settings": settings,
    "reading": read,
    **words,
    "retention": parse.estimate(record, "retention"),
    "transfer": parse.estimate(record, "transfer"),
    "deployment_length": parse.crossing(
      record, "deployment_length", "deployment_length_censored_at"
    ),
    tokens: record.count(tokens) if record.has(tokens) else None,
    seconds: record.number(seconds) if record.has(seconds) else None,
  }


def _by_step(items: list[T], path: Path, notes: list[str]) -> tuple[T, ...]:
  """Sorts by step, and takes the last line of a step that was written twice."""
  last = {item.step: item for item in items}
  if len(last) < len(items):
    twice = len(items) - len(last)
    notes.append(
      f"{path}: {twice} steps were written again; the last of each is shown."
    )
  return tuple(last[step] for step in sorted(last))
