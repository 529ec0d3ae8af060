"""Reads the answers to a task of lm-eval that decides integrity; no JAX."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bct_jax.config import ReadingConfig
from bct_jax.infra import files

FILE = "tasks.jsonl"
Row = Mapping[str, Any]  # as reading.py takes them


def task_rows(
  organism: Path, arm: Path, step: int, config: ReadingConfig
) -> tuple[list[Row], list[Row]]:
  """Makes rows of the answers to the task that decides integrity.

  Args:
    organism, arm: their folders, with what interop/lm_eval_tasks.py wrote.
    step: of the arm's last eval.
    config: names the task.

  Returns:
    A row for each document of the task, of the organism and of the arm; none
    where no task decides.

  Raises:
    ValueError: a file has no such answers, or is missing.
  """
  if config.task is None:
    return [], []
  name, metric = config.task
  before, after = (files.read_lines(x / FILE) for x in (organism, arm))
  now = [
    line
    for line in after
    if (line["step"], line["task"]) == (step, name)
    and line.get("metric")
    and metric in ("", line["metric"])
  ][-1:]
  then = [
    line
    for line in before
    if line["step"] == 0
    and now
    and all(line.get(k) == now[0][k] for k in ("task", "hash", "metric"))
  ][-1:]
  if not now or not then:
    folder, at = (organism, 0) if now else (arm, step)
    raise ValueError(
      f"{folder / FILE}: no answers of step {at} to reading.probe = "
      f"{config.probe!r}; was the file removed or changed?"
    )
  return _rows_of(then[0]), _rows_of(now[0])


def _rows_of(line: Mapping[str, Any]) -> list[Row]:
  """Makes rows of the answers in a line of tasks.jsonl."""
  return [
    {"id": key, "split": "task", "label": "", "right": right}
    for key, right in line["right"].items()
  ]
