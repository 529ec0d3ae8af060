"""Organisms of a sweep and their gates alone, before any arm is paid for."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import jax

from bct_jax.evals.gate import GateError
from bct_jax.experiment.organism import (
  make_organism,
  organism_folder,
  provenance,
)
from bct_jax.infra import files, signals
from bct_jax.sweep.cells import Cell, group_by_organism
from bct_jax.sweep.groups import make_room, plan_of
from bct_jax.train.step import NumericalError


def run_gates(
  cells: Sequence[Cell], root: Path
) -> dict[str, Mapping[str, Any]]:
  """Makes and checks the organism of each cell; those of before are reused.

  Args:
    cells: of the sweep; one organism may serve several.
    root: its directory, whose `organisms` the arms take them from later.

  Returns:
    {"gate": ..., "made": ...} by the name of an organism's first cell, or
    {"error": text} of one that could not be made.

  Raises:
    signals.Preempted: a signal asked to stop.
  """
  found: dict[str, Mapping[str, Any]] = {}
  groups, last = group_by_organism(cells), None
  for number, group in enumerate(groups, 1):
    if signals.stop_requested():
      raise signals.Preempted("between two organisms")
    make_room(last, group[0])
    last = group[0]
    name = group[0].name
    found[name] = _make(group, root)
    said = found[name].get("error") or (
      "passed" if found[name]["gate"]["passed"] else "FAILED the gate"
    )
    head = f"organism {number} of {len(groups)}, {name}"
    print(f"{head}: {said}", file=sys.stderr, flush=True)
  return found


def _make(group: Sequence[Cell], root: Path) -> Mapping[str, Any]:
  (root / "organisms").mkdir(parents=True, exist_ok=True)
  try:
    plan = plan_of(group)
    folder = organism_folder(root, provenance(plan))
    with (
      jax.set_mesh(plan.runtime.mesh),
      filelock.FileLock(root / "organisms" / ".lock"),
      contextlib.suppress(GateError),  # its rates are in the file
    ):
      make_organism(plan, root)
    return {k: files.read_json(folder / f"{k}.json") for k in ("gate", "made")}
  except (NumericalError, ValueError) as e:
    return {"error": str(e)}


def gate_table(found: Mapping[str, Mapping[str, Any]]) -> str:
  """A row of Markdown for each organism: how it was made, and its rates."""
  lines = [
    "| organism | install | model: initial, agreed | initial | confused "
    "| agreed | gate |",
    "|---|---|---|---|---|---|---|",
  ]
  for name, one in found.items():
    if "error" in one:
      said = one["error"].splitlines()[0].replace("|", "\\|")
      lines.append(f"| `{name}` | {said} | | | | | failed |")
      continue
    gate = one["gate"]
    base = gate.get("base")
    before = f"{base['initial']:.0%}, {base['agreed']:.0%}" if base else ""
    rates = " | ".join(
      f"{gate[k]:.1%} [{gate[k + '_ci'][0]:.0%}, {gate[k + '_ci'][1]:.0%}]"
      for k in ("initial", "confused", "agreed")
    )
    passed = "passed" if gate["passed"] else "failed"
    lines.append(
      f"| `{name}` | {_install(one['made'])} | {before} | {rates} | {passed} |"
    )
  return "\n".join(lines)


def _install(made: Mapping[str, Any]) -> str:
  if "steps" not in made:
    return str(made["kind"])
  rank = f", rank {made['rank']}" if made["rank"] else ""
  return (
    f"{made['kind']}, {made['steps']} x {made['batch_size']} at "
    f"{made['lr']:g}{rank}"
  )
