"""Runs one experiment: organism -> gate -> arms -> readings.

Every stage writes its files before it counts as done, and is skipped when they
are there. An unfinished stage goes on from its last checkpoint.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from bct_jax.data.leaks import describe_overlap
from bct_jax.evals.outcome import SCHEMA
from bct_jax.experiment import growth, other_run
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
  leaks = find_leaks(plan, list(plan.config.arms))
  with jax.set_mesh(plan.runtime.mesh):
    folder, gate = make_organism(plan, workdir)
    arms = []
    for name in plan.config.arms:
      outcome = run_arms(plan, folder.name, {name: workdir})[name]
      if isinstance(outcome, Exception):
        raise outcome
      arms.append(outcome)
  return write_result(plan, workdir, folder, gate, arms, leaks)


def _other_run(folder: Path) -> dict[str, Any]:
  """Returns from which run the organism was taken; {} if it was made here."""
  record = shared_files.read_json_or_none(folder / other_run.RECORD)
  return {"from_run": record["run"]} if record else {}


def find_leaks(plan: Plan, names: Sequence[str]) -> dict[str, Any]:
  """Measures what training shares with evals; warns of prompts in both.

  Args:
    plan: of the experiment.
    names: of the arms to look at, besides the organism.

  Returns:
    What datasets.measure_leaks returns.
  """
  leaks = measure_leaks(plan.config, plan.setting, names)
  for name, overlap in leaks.items():
    if overlap["eval"]["same"]:
      log_line(f"LEAK of {describe_overlap(name, overlap)}")
  return leaks


def write_result(
  plan: Plan,
  workdir: Path,
  folder: Path,
  gate: dict[str, Any],
  arms: Sequence[dict[str, Any]],
  leaks: dict[str, Any],
) -> dict[str, Any]:
  """Writes and returns result.json of arms that are done.

  Args:
    plan: of the experiment.
    workdir: its run directory.
    folder, gate: of the organism.
    arms: their records, the contents of their done.json.
    leaks: see find_leaks.
  """
  result = {
    "schema": SCHEMA,
    "setting": plan.config.setting.name,
    "model": plan.config.model.path,
    "organism": {
      "kind": plan.config.organism.kind,
      "hash": folder.name,
      "provenance": provenance(plan),
      "made": shared_files.read_json_or_none(folder / "made.json"),
      **_other_run(folder),
      "gate": gate,
    },
    "leaks": leaks,
    **({"judge": plan.judge.identity} if plan.judge else {}),
    "arms": arms,
  }
  if grown := growth.records(workdir):
    result["growth"] = grown
  shared_files.write_json(workdir / "result.json", result)
  return result
