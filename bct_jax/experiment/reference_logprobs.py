"""What the organism gives each completion, found once before training."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bct_jax.config import ArmConfig
from bct_jax.data.batches import Dataset
from bct_jax.experiment.plan import Plan
from bct_jax.infra import files, processes, shared_files, signals
from bct_jax.infra.progress import stage
from bct_jax.models.lora import Weights
from bct_jax.objectives import data_needs, objective_of

# Examples scored between two writes.
_PART = 64


def with_logprobs(
  plan: Plan,
  name: str,
  arm: ArmConfig,
  dataset: Dataset,
  path: Path,
  made_by: str,
  start: Callable[[], Weights],
) -> Dataset:
  """The dataset with the reference's log-probabilities, if they are asked for.

  They are those of the forward pass of training, summed over a completion, and
  are written as they are found: a run that was killed goes on with what is
  there, and trains on the very same numbers.

  Args:
    plan: for the scorer.
    name: of the arm, for the terminal.
    arm: whose objective may ask.
    dataset: what it trains on.
    path: of the file of JSON lines.
    made_by: the hash of the organism.
    start: gives the organism's weights; called if something is missing.

  Raises:
    signals.Preempted: a signal asked to stop; what was found is in the file.
  """
  if not data_needs(objective_of(arm)).scored:
    return dataset
  extra_rows = {"": dataset.examples, **dataset.extra_rows}
  key = files.digest([made_by, dataset.hash])
  known = _read(path, key)
  _score_rest(plan, name, dataset.ids, extra_rows, known, path, key, start)
  return dataclasses.replace(
    dataset,
    logprobs={
      view: tuple(line[view or "example"] for line in known)
      for view in extra_rows
    },
  )


def _score_rest(
  plan: Plan,
  name: str,
  ids: tuple[str, ...],
  extra_rows: dict[str, Any],
  known: list[dict[str, Any]],
  path: Path,
  key: str,
  start: Callable[[], Weights],
) -> None:
  """Adds what is missing to `known` and to the file, part by part."""
  weights = None
  with stage(f"reference of {name}", len(ids), "examples") as bar:
    bar(len(known))
    while len(known) < len(ids):
      weights = weights or start()
      part = slice(len(known), len(known) + _PART)
      found = {
        view: _sums(plan, weights, rows[part])
        for view, rows in extra_rows.items()
      }
      for i, example in enumerate(ids[part]):
        sums = {view or "example": x[i] for view, x in found.items()}
        known.append({"id": example, **sums})
      shared_files.write_lines(path, [{"key": key}, *known])
      bar(len(ids[part]))
      if bool(processes.vote(signals.stop_requested())):
        raise signals.Preempted(f"after {len(known)} of {len(ids)} examples")


def _sums(plan: Plan, weights: Weights, rows: Any) -> list[float]:
  starts = [next(i for i, w in enumerate(r.weights) if w > 0) for r in rows]
  prompts = [r.ids[:at] for r, at in zip(rows, starts, strict=True)]
  rest = [r.ids[at:] for r, at in zip(rows, starts, strict=True)]
  return [sum(s.logprobs) for s in plan.runtime.scorer(weights, prompts, rest)]


def _read(path: Path, key: str) -> list[dict[str, Any]]:
  lines = shared_files.read_lines(path)
  return lines[1:] if lines and lines[0].get("key") == key else []
