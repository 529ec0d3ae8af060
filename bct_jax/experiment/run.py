"""One experiment: organism -> gate -> arms -> verdicts, resumable anywhere.

Every stage writes its files before it counts as done and is skipped when they
are there; an unfinished stage continues from its last checkpoint.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from bct_jax.data.leaks import describe_overlap
from bct_jax.experiment.arms import run_arms
from bct_jax.experiment.datasets import measure_leaks
from bct_jax.experiment.organism import make_organism, provenance
from bct_jax.experiment.plan import Plan
from bct_jax.infra import shared_files
from bct_jax.infra.progress import log_line


def run(plan: Plan, workdir: Path) -> dict[str, Any]:
  """Runs or resumes the experiment in its run directory.

  Returns:
    The content of result.json.

  Raises:
    GateError: the gate failed and `gate.enforce` is set.
    train.NumericalError: a loss was not finite.
  """
  shared = find_leaks(plan, list(plan.config.arms))
  with jax.set_mesh(plan.runtime.mesh):
    folder, gate = make_organism(plan, workdir)
    arms = []
    for name in plan.config.arms:
      found = run_arms(plan, folder.name, {name: workdir})[name]
      if isinstance(found, Exception):
        raise found
      arms.append(found)
  return write_result(plan, workdir, folder, gate, arms, shared)


def find_leaks(plan: Plan, names: Sequence[str]) -> dict[str, Any]:
  """What training of arms shares with what evals ask, see datasets.leaks; says
  so of prompts that are in both."""
  shared = measure_leaks(plan.config, plan.setting, names)
  for name, found in shared.items():
    if found["eval"]["same"]:
      log_line(f"LEAK of {describe_overlap(name, found)}")
  return shared


def write_result(
  plan: Plan,
  workdir: Path,
  folder: Path,
  gate: dict[str, Any],
  arms: Sequence[dict[str, Any]],
  shared: dict[str, Any],
) -> dict[str, Any]:
  """Writes and returns result.json of arms that are done.

  Args:
    plan: of the experiment.
    workdir: its run directory.
    folder, gate: of the organism.
    arms: their records.
    shared: see find_leaks.
  """
  result = {
    "setting": plan.config.setting.name,
    "model": plan.config.model.path,
    "organism": {
      "kind": plan.config.organism.kind,
      "hash": folder.name,
      "provenance": provenance(plan),
      "made": shared_files.read_json_or_none(folder / "made.json"),
      "gate": gate,
    },
    "leaks": shared,
    "arms": arms,
  }
  shared_files.write_json(workdir / "result.json", result)
  return result
