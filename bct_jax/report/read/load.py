"""Reads a run directory (DESIGN section 5) into a `Run`, and checks it.

A finished run must be whole: each missing or damaged file is an error that
names it. An unfinished run is shown as far as it goes, with notes that say so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from bct_jax.data.leaks import describe_overlap
from bct_jax.evals.schema import EvalRecord
from bct_jax.report.read import parse, records
from bct_jax.report.read.ending import ending_of
from bct_jax.report.read.types import (
  ArmRecord,
  OrganismRecord,
  ReportError,
  RunRecord,
  TrainStep,
)

VERDICTS = ("retained", "transferred", "degraded", "inconclusive")
CONTROL = "control"  # which one an arm is of another, if it is one
SETTINGS = ("objective", "lr", "rank", "source", "decoration", "seed", CONTROL)
T = TypeVar("T", EvalRecord, TrainStep)


def load_run(path: Path) -> RunRecord:
  """Reads one run directory.

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
  known = {} if result is None else _known_arms(result)
  found = path / "arms"
  on_disk = [p.name for p in found.iterdir()] if found.is_dir() else []
  late = sorted(set(on_disk) - set(known))
  if result is not None and late:
    notes.append(f"result.json does not list these arms: {', '.join(late)}")
  settings = config.object("config").value
  arms = []
  for name in (*known, *late):
    planned = _planned(settings, name)
    arms.append(_arm(path, name, known.get(name), planned, notes))
  if result is None:
    notes.insert(0, "This run is unfinished: there is no result.json yet.")
    wanted = _wanted(settings)
    waiting = sorted(set(wanted) - set(on_disk))
    if waiting:
      notes.append(f"These arms have not begun: {', '.join(waiting)}")
    setting = _named(settings.get("setting"))
    model = _named(env.get("model") or settings.get("model"))
    organism = _unfinished_organism(path, notes)
  else:
    setting, model = result.text("setting"), result.text("model")
    organism = _organism(path, result.object("organism"))
  return RunRecord(
    path=path,
    finished=result is not None,
    setting=setting,
    model=model,
    organism=organism,
    arms=tuple(arms),
    config=settings,
    overrides=config.object("overrides").value,
    env=env,
    notes=(*ending_of(path), *notes),
    leaks=() if result is None else _leaks(result),
  )


def _leaks(result: records.Record) -> tuple[str, ...]:
  """A line for each run; () of a result from before leaks were looked for."""
  if not result.has("leaks"):
    return ()
  found = result.object("leaks")
  lines = []
  for name in found.value:
    run = found.object(name)
    shared: dict[str, Any] = {"labels": run.value.get("labels")}
    for split in ("eval", "heldout"):
      part = run.object(split)
      shared[split] = {
        **{key: part.count(key) for key in ("prompts", "same")},
        **{key: part.share(key) for key in ("share", "most")},
        "worst": part.text("worst"),
      }
    if shared["labels"] is not None:
      counts = run.object("labels")
      shared["labels"] = {key: counts.count(key) for key in counts.value}
    lines.append(describe_overlap(name, shared))
  return tuple(lines)


def _named(value: Any) -> str:
  """A name from a string or from an object that has a name or a path."""
  if isinstance(value, Mapping):
    value = value.get("name") or value.get("path")
  return value if isinstance(value, str) else ""


def _child(tree: Any, key: str) -> Mapping[str, Any]:
  value = tree.get(key) if isinstance(tree, Mapping) else None
  return value if isinstance(value, Mapping) else {}


def _wanted(config: Mapping[str, Any]) -> dict[str, str]:
  """All arms of a configuration -> the control that each is, or ""."""
  controls = ("", *config.get("controls", ()))
  return {
    f"{arm}.{control}" if control else arm: control
    for arm in _child(config, "arms")
    for control in controls
  }


def _planned(config: Mapping[str, Any], name: str) -> dict[str, Any]:
  """What the configuration says of an arm: shared fields and its own.

  Of a control only which one it is, until it says the rest itself.
  """
  if control := _wanted(config).get(name):
    return {CONTROL: control}
  own = _child(_child(config, "arms"), name)
  fields = {}
  for group in ("train", "optim"):
    fields.update(_child(config, group), **_child(own, group))
  return {key: fields[key] for key in SETTINGS if key in fields}


def _plain(record: records.Record, key: str) -> str:
  """A field that names a directory: it must not lead out of its parent."""
  name = record.text(key)
  if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
    raise record.error(key, "a plain directory name")
  return name


def _known_arms(result: records.Record) -> dict[str, records.Record]:
  known: dict[str, records.Record] = {}
  for arm in result.objects("arms"):
    name = _plain(arm, "name")
    if name in known:
      raise arm.error("name", "unique")
    known[name] = arm
  return known


def _organism(path: Path, record: records.Record) -> OrganismRecord:
  name = _plain(record, "hash")
  # The same content stands in result.json. It is read to hold the directory
  # to its word: a finished run with a lost file is not what it says it is.
  records.read_json(path / "organisms" / name / "gate.json")
  return OrganismRecord(
    kind=record.text("kind"),
    hash=name,
    provenance=record.object("provenance").value,
    gate=parse.gate(record.object("gate")),
    made=record.object("made").value if record.has("made") else {},
  )


def _unfinished_organism(path: Path, notes: list[str]) -> OrganismRecord:
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


def _arm(
  path: Path,
  name: str,
  record: records.Record | None,
  planned: Mapping[str, Any],
  notes: list[str],
) -> ArmRecord:
  """One arm from its files, and from its part of result.json if it has one."""
  folder = path / "arms" / name
  finished = (folder / "done.json").exists()
  # An arm that is still training, or was killed, may lack its last files and
  # end in half a line. A finished arm may not.
  torn = None if finished else notes.append
  if not finished:
    notes.append(f"Arm {name} is unfinished: it has no done.json.")
  elif record is None:
    done = records.read_json(folder / "done.json")
    record = done if done.has("verdict") else None
  missing: list[str] = []

  def lines(file: str) -> list[records.Record]:
    if not finished and not (folder / file).exists():
      missing.append(file)
      return []
    return list(records.read_lines(folder / file, torn))

  points = [parse.eval_record(r) for r in lines("evals.jsonl")]
  curve = _by_step(points, folder / "evals.jsonl", notes)
  if record is not None and record.has("curve"):
    told = tuple(parse.eval_record(r) for r in record.objects("curve"))
    if told != curve:
      notes.append(
        f"Arm {name}: evals.jsonl does not say what result.json does; the"
        " curve shown is the one of result.json, on which the verdict rests."
      )
    curve = told
  steps = [parse.train_step(r) for r in lines("metrics.jsonl")]
  metrics = _by_step(steps, folder / "metrics.jsonl", notes)
  rollouts = {
    point.step: tuple(
      parse.row(r, point.step)
      for r in lines(f"rollouts/step_{point.step}.jsonl")
    )
    for point in curve
  }
  audit = folder / "mask_audit.txt"
  if not finished and not audit.exists():
    missing.append(audit.name)
  return ArmRecord(
    name=name,
    finished=finished,
    curve=curve,
    metrics=metrics,
    rollouts={step: rows for step, rows in rollouts.items() if rows},
    mask_audit="" if audit.name in missing else records.read_text(audit),
    missing=tuple(missing),
    **_outcome(record, planned),
  )


def _outcome(
  record: records.Record | None, planned: Mapping[str, Any]
) -> dict[str, Any]:
  """The fields of an arm that only a finished one has for sure."""
  if record is None:
    empty = ("retention", "transfer", "transfer_step", "deployment_length")
    rest = {"settings": planned, "verdict": "", "why": "", "returned": False}
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
  return {
    "settings": settings,
    "verdict": record.text("verdict", VERDICTS),
    "why": record.text("why") if record.has("why") else "",
    "retention": parse.estimate(record, "retention"),
    "transfer": parse.estimate(record, "transfer"),
    "transfer_step": parse.crossing(
      record, "transfer_step", "transfer_censored_at"
    ),
    "deployment_length": parse.crossing(
      record, "deployment_length", "deployment_length_censored_at"
    ),
    "returned": record.flag("returned") if record.has("returned") else False,
    tokens: record.count(tokens) if record.has(tokens) else None,
    seconds: record.number(seconds) if record.has(seconds) else None,
  }


def _by_step(items: list[T], path: Path, notes: list[str]) -> tuple[T, ...]:
  """In the order of steps; of a step written twice (a resume) the last."""
  last = {item.step: item for item in items}
  if len(last) < len(items):
    twice = len(items) - len(last)
    notes.append(
      f"{path}: {twice} steps were written again; the last of each is shown."
    )
  return tuple(last[step] for step in sorted(last))
