"""Turns records of a run's files into the types of the report.

All functions raise `ReportError`, which names file, line and field.
"""

import math
from collections.abc import Iterable
from typing import Any

from bct_jax.data.leaks import describe_overlap
from bct_jax.evals import crossings, schema
from bct_jax.evals import reading as readings
from bct_jax.evals.paired import Interval
from bct_jax.evals.schema import Gradients, Rate
from bct_jax.report.read import records
from bct_jax.report.read.types import (
  Crossing,
  Estimate,
  GateRecord,
  ReportError,
  Row,
  TrainStep,
)

LABELS = {
  "eval": ("initial", "alternate", "other"),
  "heldout": ("agreed", "other"),
  "probe": ("right", "wrong"),
  schema.SAMPLED: ("initial", "alternate", "other"),
}
# Keys of `schema.Gradients.values`: how the next update pushes on behaviors.
PUSHES = tuple(
  f"{what}_{behavior}"
  for what in ("gradient_cosine", "update_cosine", "update_gain")
  for behavior in ("initial", "alternate")
)
# The rates of a writer that rounds to 3 digits may miss 1 by this much.
_SUM_TOLERANCE = 2e-3


def gate(record: records.Record) -> GateRecord:
  """Reads a gate.json, or its copy in result.json."""
  bars = record.object("thresholds")
  worst = record.objects("worst") if record.has("worst") else []
  return GateRecord(
    passed=record.flag("passed"),
    enforced=record.flag("enforced"),
    thresholds={key: bars.share(key) for key in bars.value},
    rates=_rates(record),
    worst=tuple(row(r) for r in worst),
    base=_rates(record.object("base")) if record.has("base") else {},
  )


def _rates(record: records.Record) -> dict[str, Rate]:
  """Reads the rates of a gate in the order in which the report shows them."""
  keys = {m.name: m.count_key for m in schema.measurements()}
  names = ["initial", "alternate", "other", "confused", "agreed"]
  names += filter(record.has, ("right", "capability"))
  return {name: record.rate(name, keys[name]) for name in names}


def estimate(record: records.Record, key: str) -> Estimate | None:
  """Reads a number and its interval; None where the number is absent."""
  if not record.has(key):
    return None
  return Estimate(record.number(key), record.open_interval(f"{key}_ci"))


def reading(record: records.Record) -> readings.Reading:
  """Reads the reading of an arm."""
  lowest = None
  if record.has("min_capability"):
    rate, step = record.numbers("min_capability", 2)
    lowest = rate, int(step)
  bounds = record.open_interval("margin_bounds")
  return readings.Reading(
    behavior=record.choice("behavior", readings.BEHAVIORS),
    integrity=record.choice("integrity", readings.INTEGRITIES),
    progress=record.text("progress", readings.PROGRESS),
    step=record.count("step"),
    measures=tuple(_measure(m) for m in record.objects("measures")),
    style_step=_bracket(record.object("style_step")),
    loss_step=_bracket(record.object("loss_step")),
    replaced_at=_bracket(record.object("replaced_at")),
    returned=record.flag("returned"),
    min_capability=lowest,
    margin=record.number("margin") if record.has("margin") else None,
    margin_bounds=bounds
    and (bounds[0], None if bounds[1] == math.inf else bounds[1]),
  )


def _measure(record: records.Record) -> readings.Measure:
  """Reads what integrity rests on."""
  ends = record.interval("change_ci")
  if ends is None:
    raise record.error("change_ci", "an interval [low, high]")
  return readings.Measure(
    record.text("name"),
    record.count("n"),
    record.share("before"),
    Interval(record.number("change"), *ends),
  )


def _bracket(record: records.Record) -> crossings.Crossing:
  """Reads between which evals something began to last."""
  return crossings.Crossing(
    *(
      record.count(key) if record.has(key) else None
      for key in ("after", "by", "censored_at")
    )
  )


def crossing(record: records.Record, key: str, censored_key: str) -> Crossing:
  """Reads the step at which an event happened, or up to which it had not."""
  return Crossing(
    record.count(key) if record.has(key) else None,
    record.count(censored_key) if record.has(censored_key) else None,
  )


def eval_record(record: records.Record) -> schema.EvalRecord:
  """Reads a line of evals.jsonl by the fields of `schema.EvalRecord`."""
  step = record.count("step")
  values = {m.name: _value(record, m) for m in schema.measurements()}
  out = schema.EvalRecord(
    step=step,
    **values,
    gradients=_gradients(record.object("gradients"))
    if record.has("gradients")
    else None,
    tasks=_tasks(record.object("tasks")) if record.has("tasks") else {},
  )
  total = out.initial.value + out.alternate.value + out.other.value
  if abs(total - 1) > _SUM_TOLERANCE:
    raise ReportError(
      f"{record.where}: initial, alternate and other should add up to 1, add"
      f" up to {total:.4g}"
    )
  return out


def _value(record: records.Record, measurement: schema.Measurement) -> Any:
  """Reads the value of a measurement; None where an optional one is absent."""
  name = measurement.name
  if measurement.kind == "counts":
    return record.object(name).value if record.has(name) else {}
  if measurement.optional and not record.has(name):
    return None
  if measurement.kind in ("prompts", "cues"):
    return record.count(name)
  if measurement.kind == "doses":
    return record.object(name).value
  if measurement.kind == "share":
    return record.rate(name, measurement.count_key)
  return record.number(name)


def _gradients(record: records.Record) -> Gradients:
  """Reads the pushes on both behaviors, and norms of gradient and update."""
  norms = {k: record.object(k) for k in ("gradient_norm", "update_norm")}
  return Gradients(
    _numbers(record, PUSHES),
    **{k: _numbers(part, part.value) for k, part in norms.items()},
  )


def _tasks(record: records.Record) -> dict[str, dict[str, float | None]]:
  """Reads task -> metric -> value."""
  parts = {name: record.object(name) for name in record.value}
  return {name: _numbers(part, part.value) for name, part in parts.items()}


def _numbers(
  record: records.Record, keys: Iterable[str]
) -> dict[str, float | None]:
  """Reads finite numbers by key; None where one is absent."""
  return {k: record.number(k) if record.has(k) else None for k in keys}


def train_step(record: records.Record) -> TrainStep:
  """Reads a line of metrics.jsonl."""
  return TrainStep(
    step=record.count("step"),
    loss=record.measured("loss"),
    grad_norm=record.measured("grad_norm"),
    seconds=record.measured("seconds"),
  )


def row(record: records.Record, step: int | None = None) -> Row:
  """Reads a completion.

  Args:
    record: a line of rollouts/step_N.jsonl, or one of a gate's worst.
    step: of the eval, None of a gate.
  """
  split = record.text("split", tuple(LABELS))
  number = record.count("sample") if record.has("sample") else 0
  return Row(
    id=record.text("id") + (f" sample {number}" if number else ""),
    split=split,
    prompt=_prompt(record),
    text=record.text("text"),
    label=record.text("label", LABELS[split]),
    reason=record.text("reason") if record.has("reason") else "",
    decorated=record.flag("decorated") if record.has("decorated") else None,
    stop=record.text("stop") if record.has("stop") else "",
    step=step,
    right=record.flag("right") if record.has("right") else None,
  )


def _prompt(record: records.Record) -> tuple[tuple[str, str], ...]:
  """Reads (role, content) of each message; older files have a string."""
  if isinstance(record.value.get("prompt"), str):
    return (("user", record.text("prompt")),)
  turns = record.objects("prompt")
  return tuple((turn.text("role"), turn.text("content")) for turn in turns)


def growth(result: records.Record) -> list[str]:
  """Says what was added to a run after it was begun, a line for each time."""
  lines = []
  for entry in result.objects("growth") if result.has("growth") else []:
    arms = entry.value.get("arms") or []
    counts = entry.object("prompts")
    parts = [f"arms {', '.join(map(str, arms))}"] if arms else []
    for field in counts.value:
      old, new = counts.numbers(field, 2)
      parts.append(f"eval.{field} {old:.0f} to {new:.0f}, old answers kept")
    lines.append(f"Added on {entry.text('at')[:10]}: {'; '.join(parts)}.")
  return lines


def leaks(result: records.Record) -> tuple[str, ...]:
  """Describes what training data shares with prompts, a line for each run.

  There is no line in a result from before leaks were looked for.
  """
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
