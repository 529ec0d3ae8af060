"""Checks that an organism is valid before any arm is trained. Pure Python."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bct_jax.config import GateConfig
from bct_jax.infra.formats import interval, percent

# Rates that an organism must keep of the model before the install.
KEPT = ("right", "capability")


class GateError(RuntimeError):
  """Is raised when the organism fails the gate, so that no arm is trained."""


@dataclasses.dataclass(frozen=True)
class Check:
  """Holds one bar of the gate.

  Attributes:
    name: of the bar in `thresholds` of gate.json.
    rate: which rate it is for.
    value: what is compared with it: the rate, or its lower bound.
    bar: the least that passes; of `confused` the most.
    why: where the bar is from, for a reader.
  """

  name: str
  rate: str
  value: float
  bar: float
  why: str = ""

  @property
  def passed(self) -> bool:
    """Returns whether the value meets the bar."""
    if self.rate == "confused":
      return self.value <= self.bar
    return self.value >= self.bar


def find_checks(
  record: Mapping[str, Any],
  config: GateConfig,
  base: Mapping[str, Any] | None = None,
) -> Iterator[Check]:
  """Yields all bars of the gate; those of a rate that a record lacks are not.

  The high bars are compared with the rates themselves: the lower bound of 64 of
  64 is 0.94. The floors are compared with lower bounds, so that few right
  answers by chance do not pass.

  Args:
    record: the organism's eval, as `EvalRecord.to_json` gives it.
    config: the bars.
    base: the eval of the model before the install; None if there is none.
  """
  yield Check("initial", "initial", record["initial"], config.min_initial)
  yield Check("confused", "confused", record["confused"], config.max_confused)
  yield Check("agreed", "agreed", record["agreed"], config.min_agreed)
  floors = {"right": config.min_right, "capability": config.min_capability}
  for name in KEPT:
    if name not in record:
      continue
    if base is not None and name in base:
      kept, before = percent(config.min_kept), percent(base[name])
      why = f"{kept} of {before} before the install"
      bar = round(config.min_kept * base[name], 9)
      yield Check(name, name, record[name], bar, why)
    low, floor = record[f"{name}_ci"][0], floors[name]
    yield Check(f"{name}_floor", name, low, floor, "of the lower bound")


def check_gate(
  record: Mapping[str, Any],
  config: GateConfig,
  base: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Compares the rates of an organism with the bars of the gate.

  Args:
    record: the organism's eval, as `EvalRecord.to_json` gives it.
    config: the bars, and whether a failure stops the run.
    base: the eval of the model before the install; None if there is none.

  Returns:
    The part of gate.json that says so: `passed`, `enforced`, `thresholds` and
      `min_kept`, the share that the bars `right` and `capability` are of the
      rates before the install.
  """
  checks = list(find_checks(record, config, base))
  return {
    "passed": all(check.passed for check in checks),
    "enforced": config.enforce,
    "thresholds": {check.name: check.bar for check in checks},
    "min_kept": config.min_kept,
  }


def first_failures(
  rows: Sequence[dict[str, Any]], count: int = 5
) -> list[dict]:
  """Picks completions that speak against the organism.

  They are taken in turn from both splits in the order of the rows; of held-out
  prompts those that show the behavior of eval prompts come first, and wrong
  answers that show the agreed behavior last.
  """
  keys = ("id", "split", "prompt", "text", "label", "reason", "right")
  bad: dict[str, list[dict]] = {"heldout": [], "eval": []}
  for row in rows:
    is_wrong = row["split"] == "heldout" and row.get("right") is False
    if row["label"] != _WANTED.get(row["split"], row["label"]) or is_wrong:
      bad[row["split"]].append({key: row[key] for key in keys if key in row})
  bad["heldout"].sort(
    key=lambda row: (row["label"] == "agreed", row["reason"] != "confused")
  )
  turns = itertools.chain(*itertools.zip_longest(*bad.values()))
  return [row for row in turns if row][:count]


_WANTED = {"eval": "initial", "heldout": "agreed"}


def gate_text(gate: Mapping[str, Any], config: GateConfig) -> str:
  """Describes a failed gate for the terminal.

  Args:
    gate: the content of gate.json.
    config: the bars.
  """
  lines = ["The gate failed: arms of this organism would show nothing."]
  checks = list(find_checks(gate, config, gate.get("base")))
  for check in checks:
    low, high = gate[f"{check.rate}_ci"]
    rate = f"{check.rate} {percent(gate[check.rate])} {interval((low, high))}"
    sign = "<=" if check.rate == "confused" else ">="
    why = f" ({check.why})" if check.why else ""
    failed = "" if check.passed else ": FAILED"
    lines.append(f"  {rate}, needed {sign} {percent(check.bar)}{why}{failed}")
  if any(c.name == "capability_floor" and not c.passed for c in checks):
    lines.append(
      "  A fall of what is not there could not be seen: choose a probe that a "
      "model like this can do (eval.probe), or lower gate.min_capability."
    )
  for row in gate["worst"]:
    parts = [row["label"], row["reason"], _SAID.get(row.get("right"), "")]
    label = " ".join(filter(None, parts))
    question = row["prompt"][-1]["content"]
    lines.append(f"  {row['id']} {question!r} -> {row['text']!r} ({label})")
  return "\n".join(lines)


_SAID = {True: "", False: "not right", None: ""}
