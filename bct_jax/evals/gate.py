"""Checks that an organism is valid before any arm is trained. Pure Python."""

import itertools
from collections.abc import Sequence
from typing import Any

from bct_jax.config import GateConfig


class GateError(RuntimeError):
  """Is raised when the organism fails the gate, so that no arm is trained."""


def check_gate(record: dict[str, Any], config: GateConfig) -> dict[str, Any]:
  """Compares the rates of an organism with the bars of the gate.

  Args:
    record: the organism's eval, as `EvalRecord.to_json` gives it.
    config: the bars, and whether a failure stops the run.

  Returns:
    The part of gate.json that says so: `passed`, `enforced`, `thresholds`.
  """
  passed = (
    record["initial"] >= config.min_initial
    and record["confused"] <= config.max_confused
    and record["agreed"] >= config.min_agreed
  )
  return {
    "passed": passed,
    "enforced": config.enforce,
    "thresholds": {
      "initial": config.min_initial,
      "confused": config.max_confused,
      "agreed": config.min_agreed,
    },
  }


def first_failures(
  rows: Sequence[dict[str, Any]], count: int = 5
) -> list[dict]:
  """Picks completions that speak against the organism.

  They are taken in turn from both splits in the order of the rows; of held-out
  prompts those that show the behavior of eval prompts come first.
  """
  keys = ("id", "split", "prompt", "text", "label", "reason")
  bad: dict[str, list[dict]] = {"heldout": [], "eval": []}
  right_labels = {"eval": "initial", "heldout": "agreed"}
  for row in rows:
    if row["label"] != right_labels.get(row["split"], row["label"]):
      bad[row["split"]].append({key: row[key] for key in keys})
  bad["heldout"].sort(key=lambda row: row["reason"] != "confused")
  turns = itertools.chain(*itertools.zip_longest(*bad.values()))
  return [row for row in turns if row][:count]


def gate_text(gate: dict[str, Any]) -> str:
  """Describes a failed gate for the terminal.

  Args:
    gate: the content of gate.json.
  """
  limits = gate["thresholds"]

  def line(name, sign, limit):
    low, high = gate[f"{name}_ci"]
    rate = f"{gate[name]:.3f} [{low:.3f}, {high:.3f}]"
    return f"  {name} {rate}, needed {sign} {limit}"

  lines = [
    "The gate failed: the organism does not hold the initial behavior.",
    line("initial", ">=", limits["initial"]),
    line("confused", "<=", limits["confused"]),
    line("agreed", ">=", limits["agreed"]),
    *(
      f"  {r['id']} {r['prompt'][-1]['content']!r} -> {r['text']!r} "
      f"({r['label']} {r['reason']})"
      for r in gate["worst"]
    ),
  ]
  return "\n".join(lines)
