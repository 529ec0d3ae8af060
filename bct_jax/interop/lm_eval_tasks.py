"""Tasks of lm-eval on weights of a run: `eval.tasks`.

They are run in memory, on the mesh and with the programs of the run, as
interop/harness.py runs them on a folder. What a task gave is kept in a file of
its own as soon as it ends: benchmarks may take longer than training does.
"""

# The extra `eval` may not be installed.
# pyright: reportMissingImports=false

import contextlib
import difflib
import functools
import importlib.util
import math
import os
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bct_jax.config import ConfigError, EvalConfig
from bct_jax.infra import files, processes, shared_files, signals
from bct_jax.interop.local_model import LocalModel, sampler_cache
from bct_jax.models.lora import Weights
from bct_jax.runtime.runtime import Runtime

FILE = "tasks.jsonl"
# Resamples for the standard error of a metric that has no formula for it.
BOOTSTRAP = 1000

# Task -> metric -> value; None is one that is not finite or was not estimated.
Scores = dict[str, dict[str, float | None]]


class Tasks:
  """The tasks that a config names, which any weights of the run can be given.

  Raises:
    ConfigError: lm-eval is not installed, or there is no such task.
  """

  def __init__(self, runtime: Runtime):
    _check(runtime.config.eval)
    self._runtime = runtime
    self._samplers = sampler_cache(runtime)

  @functools.cached_property
  def _loaded(self) -> dict[str, tuple[Any, str]]:
    """Each task, or what a group or tag is of, and the hash of its requests."""
    evals = self._runtime.config.eval
    return {name: _load(name, evals) for name in evals.tasks}

  def load(self) -> None:
    """Reads their data, which lm-eval downloads where it is not there yet.

    Raises:
      ValueError: a task cannot be loaded or run here, or other processes have
        other requests.
    """
    facts = {}
    try:
      facts = {f"requests of {k}": v for k, (_, v) in self._loaded.items()}
    except ConfigError as e:
      facts = {"error": str(e)}
    processes.agree("eval.tasks: the processes do not have the same", facts)

  def run(
    self, weights: Callable[[], Weights], path: Path, step: int, title: str
  ) -> None:
    """Runs those of which the file has no line of this step yet.

    Args:
      weights: called once, if there is one.
      path: gets a line for each as soon as it ended.
      step: of the weights.
      title: of the stages of progress.

    Raises:
      ConfigError: a prompt is too long for the model.
      signals.Preempted: a signal asked to stop; those that ended are saved.
    """
    lines = shared_files.read_lines(path)
    known = {line["task"] for line in self._of_step(lines, step)}
    left = [name for name in self._loaded if name not in known]
    if not left:
      return
    given = weights()
    for name in left:
      _, made_of = self._loaded[name]
      scores = self._scores(name, given, f"{title}, {name}: ")
      line = {"step": step, "task": name, "hash": made_of, "scores": scores}
      lines.append(line)
      # Written anew, since a kill may have left half a line at the end.
      shared_files.write_lines(path, lines)

  def read(self, path: Path, step: int) -> Scores:
    """What was found at a step; call in the first process.

    Raises:
      ValueError: a task has no line of it.
    """
    lines = self._of_step(files.read_lines(path), step)
    known = {line["task"] for line in lines}
    if missing := [name for name in self._loaded if name not in known]:
      raise ValueError(
        f"{path}: no line of step {step} and task {missing[0]}; was the file "
        "removed or changed?"
      )
    return {k: v for line in lines for k, v in line["scores"].items()}

  def _of_step(
    self, lines: Sequence[dict[str, Any]], step: int
  ) -> list[dict[str, Any]]:
    """Returns the lines of a step whose requests are those of now."""
    hashes = {name: found for name, (_, found) in self._loaded.items()}
    return [
      line
      for line in lines
      if line["step"] == step and hashes.get(line["task"]) == line["hash"]
    ]

  def _scores(self, name: str, weights: Weights, title: str) -> Scores:
    from lm_eval import evaluate

    from bct_jax.interop.lm_eval_model import LocalLM

    # Its samples depend on what was asked before, so each task has its own.
    model = LocalModel(self._runtime, weights, self._samplers)
    loaded, _ = self._loaded[name]
    _seed(loaded)
    # The bootstrap would fork, and threads of JAX hold locks.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with contextlib.redirect_stdout(sys.stderr):
      found = evaluate(
        LocalLM(model, title=title, ended=_heed),
        loaded,
        limit=self._runtime.config.eval.task_limit or None,
        bootstrap_iters=BOOTSTRAP,
        log_samples=False,
      )
    assert found is not None  # it is where there is one rank, as here
    return _told(name, found)


def _check(evals: EvalConfig) -> None:
  """Looks at names alone, so that a dry run needs no data.

  Raises:
    ConfigError: naming the field.
  """
  if importlib.util.find_spec("lm_eval") is None:
    raise ConfigError(
      f"eval.tasks = {evals.tasks}: the package lm_eval is not installed: "
      "pip install 'bct_jax[eval]'"
    )
  if evals.task_path is not None and not Path(evals.task_path).is_dir():
    raise ConfigError(f"eval.task_path = {evals.task_path!r}: no such folder")
  known = _manager(evals.task_path).all_tasks
  for name in evals.tasks:
    if name not in known:
      near = ", ".join(difflib.get_close_matches(name, known, 3))
      where = " or eval.task_path" if evals.task_path else ""
      raise ConfigError(
        f"eval.tasks: {name!r} is no task of lm-eval{where}"
        + (f" (near: {near})" if near else "; `lm_eval ls tasks` has all")
      )


@functools.lru_cache(maxsize=1)
def _manager(path: str | None) -> Any:
  """The index of all tasks, which takes seconds to make."""
  from lm_eval.tasks import TaskManager

  return TaskManager(include_path=path)


def _load(name: str, evals: EvalConfig) -> tuple[Any, str]:
  random.seed(0)  # as lm-eval itself before it loads, for tasks that draw
  np.random.seed(1234)  # noqa: NPY002
  try:
    loaded = _manager(evals.task_path).load([name])
    _seed(loaded)
    made = [
      _requests(task, evals.task_limit or None)
      for task in loaded["tasks"].values()
    ]
  except Exception as e:  # whatever hubs, files and the code of tasks raise
    raise ConfigError(
      f"eval.tasks: {name!r} cannot be loaded: {type(e).__name__}: {e}"
    ) from e
  return loaded, files.digest(made)[:16]


def _seed(loaded: Any) -> None:
  """Has few-shot examples drawn as lm-eval draws them by default."""
  from lm_eval.defaults import DEFAULT_OTHER_SEED

  for task in loaded["tasks"].values():
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _requests(task: Any, limit: int | None) -> list[Any]:
  """All that the model is asked in a task."""
  for name, what in (
    ("MULTIMODAL", "its questions are not of text alone"),
    ("UNSAFE_CODE", "it would run what the model writes"),
  ):
    if getattr(task, name, False):
      raise ValueError(f"{task.task_name}: {what}")
  task.build_all_requests(limit=limit)
  return [[r.request_type, list(r.args)] for r in task.instances]


def _told(name: str, found: Mapping[str, Any]) -> Scores:
  """Metrics of a task or of a group as a whole; of a tag, or a group that is
  none, those of each of its tasks."""
  counts = {k: v["effective"] for k, v in found["n-samples"].items()}
  whole = _numbers(found["results"].get(name, {}))
  if whole:
    return {name: {**whole, "n": sum(counts.values())}}
  results = found["results"]
  return {k: {**_numbers(results[k]), "n": n} for k, n in counts.items()}


def _numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
  """Those under keys "metric,filter"; the filter "none" is not told."""
  out: dict[str, float | None] = {}
  for key, value in values.items():
    if "," in key:
      number = isinstance(value, int | float) and math.isfinite(value)
      out[key.removesuffix(",none")] = float(value) if number else None
  return out


def _heed() -> None:
  if bool(processes.vote(signals.stop_requested())):
    raise signals.Preempted("in a task of an eval")
