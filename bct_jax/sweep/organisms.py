"""Makes the organisms of a sweep and runs their gates, before any arm."""

import contextlib
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from bct_jax.evals.gate import GateError
from bct_jax.experiment.organism import (
  make_organism,
  organism_folder,
  provenance,
)
from bct_jax.infra import files, signals
from bct_jax.infra.formats import interval, number, percent
from bct_jax.infra.locks import wait_for_lock
from bct_jax.infra.memory import OutOfMemory
from bct_jax.infra.progress import log_line
from bct_jax.infra.visible import visible
from bct_jax.interop import judge
from bct_jax.sweep.cell_growth import earlier_counts
from bct_jax.sweep.cells import Cell, group_by_organism
from bct_jax.sweep.groups import make_room, plan_of
from bct_jax.train.step import NumericalError


def run_gates(
  cells: Sequence[Cell], root: Path
) -> dict[str, Mapping[str, Any]]:
  """Makes the organism of each cell and runs its gate, unless it is done.

  Args:
    cells: of the sweep; one organism may serve several.
    root: directory of the sweep; arms take organisms from its `organisms`.

  Returns:
    {"gate": ..., "made": ...} by the name of an organism's first cell, or
    {"error": text} of one that could not be made.

  Raises:
    signals.Preempted: a signal asked to stop.
  """
  records: dict[str, Mapping[str, Any]] = {}
  groups, last = group_by_organism(cells), None
  for place, group in enumerate(groups, 1):
    if signals.stop_requested():
      raise signals.Preempted("between two organisms")
    make_room(last, group[0])
    last = group[0]
    name = group[0].name
    record = records[name] = _make(group, root)
    outcome = record.get("error") or (
      "passed" if record["gate"]["passed"] else "FAILED the gate"
    )
    head = f"organism {place} of {len(groups)}, {name}"
    print(f"{head}: {outcome}", file=sys.stderr, flush=True)
  return records


def _make(group: Sequence[Cell], root: Path) -> Mapping[str, Any]:
  """Makes the organism of some cells; returns its gate, or its error."""
  (root / "organisms").mkdir(parents=True, exist_ok=True)
  try:
    plan = dataclasses.replace(
      plan_of(group), earlier=earlier_counts(group, root)
    )
    folder = organism_folder(root, provenance(plan))
    if plan.judge is not None:
      plan.judge.open(root / judge.FILE)
    with (
      jax.set_mesh(plan.runtime.mesh),
      wait_for_lock(root / "organisms" / ".lock", "an organism", log_line),
      contextlib.suppress(GateError),  # its rates are in the file
    ):
      make_organism(plan, root)
    return {k: files.read_json(folder / f"{k}.json") for k in ("gate", "made")}
  except (NumericalError, OutOfMemory, ValueError) as e:
    return {"error": visible(str(e))}


def gate_table(records: Mapping[str, Mapping[str, Any]]) -> str:
  """Writes a Markdown table: how each organism was made, and its rates.

  Args:
    records: what `run_gates` returns.
  """
  names = ("initial", "confused", "agreed", "right", "capability")
  before = ("initial", "agreed", "right", "capability")
  lines = [
    f"| organism | install | model: {', '.join(before)} | {' | '.join(names)} "
    "| gate |",
    "|" + "---|" * (4 + len(names)),
  ]
  for name, record in records.items():
    if "error" in record:
      error = record["error"].splitlines()[0].replace("|", "\\|")
      lines.append(f"| `{name}` | {error} |{' |' * (1 + len(names))} failed |")
      continue
    gate = record["gate"]
    base = gate.get("base")
    model = ", ".join(percent(base[k]) for k in before) if base else ""
    rates = " | ".join(
      f"{percent(gate[k])} {interval(gate[k + '_ci'])}" for k in names
    )
    passed = "passed" if gate["passed"] else "failed"
    install = _install(record["made"])
    lines.append(f"| `{name}` | {install} | {model} | {rates} | {passed} |")
  return "\n".join(lines)


def _install(record: Mapping[str, Any]) -> str:
  """Describes how an organism was made, from its made.json."""
  if "steps" not in record:
    return " ".join(filter(None, (record["kind"], record.get("adapter"))))
  rank = f", rank {record['rank']}" if record["rank"] else ""
  return (
    f"{record['kind']}, {record['steps']} x {record['batch_size']} at "
    f"{number(record['lr'])}{rank}"
  )
