"""The gate: is an organism valid, before any arm is trained? Pure Python."""

import itertools
from collections.abc import Sequence
from typing import Any

from bct_jax.config import GateConfig


class GateError(RuntimeError):
  """The organism does not hold the initial behavior; no arm was trained."""


def check_gate(record: dict[str, Any], config: GateConfig) -> dict[str, Any]:
  """Whether the rates pass; see DESIGN section 6."""
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
  """Completions that speak against the organism: the first ones of each split,
  in turn; on held-out prompts those that show the eval behavior first."""
  keys = ("id", "split", "prompt", "text", "label", "reason")
  bad: dict[str, list[dict]] = {"heldout": [], "eval": []}
  wanted = {"eval": "initial", "heldout": "agreed"}
  for row in rows:
    if row["label"] != wanted.get(row["split"], row["label"]):
      bad[row["split"]].append({key: row[key] for key in keys})
  bad["heldout"].sort(key=lambda row: row["reason"] != "confused")
  turns = itertools.chain(*itertools.zip_longest(*bad.values()))
  return [row for row in turns if row][:count]


def gate_text(gate: dict[str, Any]) -> str:
  """The failed gate, for the terminal."""
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
