"""Scores train completions with the organism, once before training."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bct_jax.config import ArmConfig
from bct_jax.data.batches import Dataset
from bct_jax.experiment.plan import Plan
from bct_jax.infra import files, processes, shared_files, signals
from bct_jax.infra.progress import log_line, stage
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
  """Adds the organism's log-probabilities to a dataset whose arm needs them.

  They come from the forward pass of training and are summed over a completion.
  They are written in parts, so a run that was killed goes on with what is there
  and trains on the very same numbers.

  Args:
    plan: for the scorer.
    name: of the arm, for the terminal.
    arm: whose objective may need them.
    dataset: what the arm trains on.
    path: of the file of JSON lines.
    made_by: the hash of the organism.
    start: loads the organism's weights; called if a log-probability is missing.

  Returns:
    The dataset, with `logprobs` if the objective needs them.

  Raises:
    signals.Preempted: a signal asked to stop; the file has what was scored.
  """
  if not data_needs(objective_of(arm)).scored:
    return dataset
  extra_rows = {"": dataset.examples, **dataset.extra_rows}
  key = files.digest([made_by, dataset.hash])
  lines = _read(path, key)
  _score_rest(plan, name, dataset.ids, extra_rows, lines, path, key, start)
  return dataclasses.replace(
    dataset,
    logprobs={
      view: tuple(line[view or "example"] for line in lines)
      for view in extra_rows
    },
  )


def _score_rest(
  plan: Plan,
  name: str,
  ids: tuple[str, ...],
  extra_rows: dict[str, Any],
  lines: list[dict[str, Any]],
  path: Path,
  key: str,
  start: Callable[[], Weights],
) -> None:
  """Adds the lines that are missing to `lines` and to the file, in parts.

  Args:
    plan, name, path, start: see with_logprobs.
    ids: of the examples.
    extra_rows: name -> rows to score, one for each example; "" names the
      examples themselves.
    lines: of the first examples.
    key: of the file.
  """
  weights = None
  with stage(f"reference of {name}", len(ids), "examples") as bar:
    bar(len(lines))
    while len(lines) < len(ids):
      weights = weights or start()
      part = slice(len(lines), len(lines) + _PART)
      logprobs = {
        view: _sums(plan, weights, rows[part])
        for view, rows in extra_rows.items()
      }
      for i, example in enumerate(ids[part]):
        sums = {view or "example": x[i] for view, x in logprobs.items()}
        lines.append({"id": example, **sums})
      shared_files.write_lines(path, [{"key": key}, *lines])
      bar(len(ids[part]))
      if processes.read_vote(processes.vote(signals.stop_requested())):
        raise signals.Preempted(f"after {len(lines)} of {len(ids)} examples")


def _sums(plan: Plan, weights: Weights, rows: Any) -> list[float]:
  """Sums the log-probabilities of each row from its first trained token on."""
  starts = [next(i for i, w in enumerate(r.weights) if w > 0) for r in rows]
  prompts = [r.ids[:at] for r, at in zip(rows, starts, strict=True)]
  completions = [r.ids[at:] for r, at in zip(rows, starts, strict=True)]
  scores = plan.runtime.scorer(weights, prompts, completions)
  return [sum(s.logprobs) for s in scores]


def _read(path: Path, key: str) -> list[dict[str, Any]]:
  """Reads the lines of an earlier run; none if the file has another key."""
  try:
    lines = shared_files.read_lines(path)
  except ValueError as e:
    log_line(f"{e}: scored again")
    return []
  return lines[1:] if lines and lines[0].get("key") == key else []
