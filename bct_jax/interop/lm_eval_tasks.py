"""Runs tasks of lm-eval on weights of a run: `eval.tasks`.

They are run in memory, on the mesh and with the programs of the run, as
interop/harness.py runs them on a folder. The scores of a task are written to a
file of their own as soon as it ends: benchmarks may take longer than training.
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
from bct_jax.evals.task_rows import FILE as FILE
from bct_jax.infra import files, processes, shared_files, signals
from bct_jax.interop.local_model import LocalModel, sampler_cache
from bct_jax.models.lora import Weights
from bct_jax.runtime.runtime import Runtime

# Resamples for the standard error of a metric that has no formula for it.
BOOTSTRAP = 1000

# Document -> whether it was answered rightly.
Answers = dict[str, bool]
# Task -> metric -> value; None is one that is not finite or was not estimated.
Scores = dict[str, dict[str, float | None]]


class Tasks:
  """Holds the tasks that a config names, to run on any weights of the run.

  Raises:
    ConfigError: lm-eval is not installed, or there is no such task.
  """

  def __init__(self, runtime: Runtime):
    _check(runtime.config.eval)
    self._runtime = runtime
    # The task that decides integrity, and its metric, see `_metric`.
    self._probe = runtime.config.reading.task
    self._samplers = sampler_cache(runtime)

  @functools.cached_property
  def _loaded(self) -> dict[str, tuple[Any, str]]:
    """Loads each name's task or tasks, with the hash of their requests."""
    evals = self._runtime.config.eval
    return {name: _load(name, evals) for name in evals.tasks}

  def _metric(self, name: str) -> str | None:
    """Returns the metric of the task that decides integrity.

    None is any other task.

    Raises:
      ConfigError: `reading.probe` does not name one of it.
    """
    if self._probe is None or self._probe[0] != name:
      return None
    return _choose_metric(self._loaded[name][0], *self._probe)

  def load(self) -> None:
    """Reads the tasks' data, which lm-eval downloads if it is not there yet.

    Raises:
      ValueError: a task cannot be loaded or run here, or other processes have
        other requests.
    """
    facts = {}
    try:
      facts = {f"requests of {k}": v for k, (_, v) in self._loaded.items()}
      facts |= {f"metric of {k}": self._metric(k) for k in self._loaded}
    except ConfigError as e:
      facts = {"error": str(e)}
    processes.agree("eval.tasks: the processes do not have the same", facts)

  def run(
    self, weights: Callable[[], Weights], path: Path, step: int, title: str
  ) -> None:
    """Runs the tasks that have no line of this step in the file yet.

    Args:
      weights: returns the weights; called once, if there is a task to run.
      path: file that gets a line for each task as soon as it ends.
      step: of the weights.
      title: of the stages of progress.

    Raises:
      ConfigError: a prompt is too long for the model.
      signals.Preempted: a signal asked to stop; tasks that ended are saved.
    """
    lines = shared_files.read_lines(path)
    finished = {line["task"] for line in self._of_step(lines, step)}
    missing = [name for name in self._loaded if name not in finished]
    if not missing:
      return
    loaded_weights = weights()
    for name in missing:
      _, digest = self._loaded[name]
      results = self._results(name, loaded_weights, f"{title}, {name}: ")
      scores = _scores_of(name, results)
      line = {"step": step, "task": name, "hash": digest, "scores": scores}
      if (metric := self._metric(name)) is not None:
        line |= {"metric": metric, "right": _right_answers(results, metric)}
      lines.append(line)
      # Written anew, since a kill may have left half a line at the end.
      shared_files.write_lines(path, lines)

  def read(self, path: Path, step: int) -> Scores:
    """Reads the scores of a step; call in the first process.

    Raises:
      ValueError: a task has no line of it.
    """
    lines = self._of_step(files.read_lines(path), step)
    finished = {line["task"] for line in lines}
    if missing := [name for name in self._loaded if name not in finished]:
      raise ValueError(
        f"{path}: no line of step {step} and task {missing[0]}; was the file "
        "removed or changed?"
      )
    return {k: v for line in lines for k, v in line["scores"].items()}

  def _of_step(
    self, lines: Sequence[dict[str, Any]], step: int
  ) -> list[dict[str, Any]]:
    """Returns the lines of a step whose requests are those of now.

    That of the task which decides integrity has its metric, too.
    """
    hashes = {name: digest for name, (_, digest) in self._loaded.items()}
    metrics = {name: self._metric(name) for name in self._loaded}
    return [
      line
      for line in lines
      if line["step"] == step
      and hashes.get(line["task"]) == line["hash"]
      and metrics[line["task"]] in (None, line.get("metric"))
    ]

  def _results(
    self, name: str, weights: Weights, title: str
  ) -> Mapping[str, Any]:
    """Runs a task on weights; returns what lm-eval does.

    Args:
      name: of the task, as the config has it.
      weights: to evaluate.
      title: what the stages of progress begin with.
    """
    from lm_eval import evaluate

    from bct_jax.interop.lm_eval_model import LocalLM

    # A model's samples depend on what it was asked before, so each task has a
    # model of its own.
    model = LocalModel(self._runtime, weights, self._samplers)
    loaded, _ = self._loaded[name]
    _seed(loaded)
    # The bootstrap would fork, and threads of JAX hold locks.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    with contextlib.redirect_stdout(sys.stderr):
      results = evaluate(
        LocalLM(model, title=title, ended=_raise_if_stopped),
        loaded,
        limit=self._runtime.config.eval.task_limit or None,
        bootstrap_iters=BOOTSTRAP,
        log_samples=self._metric(name) is not None,
      )
    assert results is not None  # only other ranks get None, and there is one
    return results


def _check(evals: EvalConfig) -> None:
  """Checks the names of the tasks alone, so that a dry run needs no data.

  Raises:
    ConfigError: lm-eval or a task is missing; the message names the field.
  """
  if importlib.util.find_spec("lm_eval") is None:
    raise ConfigError(
      f"eval.tasks = {evals.tasks}: the package lm_eval is not installed: "
      "pip install 'bct_jax[eval]'"
    )
  if evals.task_path is not None and not Path(evals.task_path).is_dir():
    raise ConfigError(f"eval.task_path = {evals.task_path!r}: no such folder")
  valid = _manager(evals.task_path).all_tasks
  for name in evals.tasks:
    if name not in valid:
      near = ", ".join(difflib.get_close_matches(name, valid, 3))
      where = " or eval.task_path" if evals.task_path else ""
      raise ConfigError(
        f"eval.tasks: {name!r} is no task of lm-eval{where}"
        + (f" (near: {near})" if near else "; `lm_eval ls tasks` has all")
      )


@functools.lru_cache(maxsize=1)
def _manager(path: str | None) -> Any:
  """Makes the index of all tasks, which takes seconds."""
  from lm_eval.tasks import TaskManager

  return TaskManager(include_path=path)


def _load(name: str, evals: EvalConfig) -> tuple[Any, str]:
  """Loads a task, group or tag, and hashes its requests.

  Raises:
    ConfigError: it cannot be loaded or run here.
  """
  random.seed(0)  # as lm-eval itself before it loads, for tasks that draw
  np.random.seed(1234)  # noqa: NPY002
  try:
    loaded = _manager(evals.task_path).load([name])
    _seed(loaded)
    requests = [
      _requests(task, evals.task_limit or None)
      for task in loaded["tasks"].values()
    ]
  except Exception as e:  # whatever hubs, files and the code of tasks raise
    raise ConfigError(
      f"eval.tasks: {name!r} cannot be loaded: {type(e).__name__}: {e}"
    ) from e
  return loaded, files.digest(requests)[:16]


def _seed(loaded: Any) -> None:
  """Sets the seed with which lm-eval draws few-shot examples by default."""
  from lm_eval.defaults import DEFAULT_OTHER_SEED

  for task in loaded["tasks"].values():
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _requests(task: Any, limit: int | None) -> list[Any]:
  """Builds all requests of a task.

  Raises:
    ValueError: the task needs more than text, or runs code.
  """
  for name, what in (
    ("MULTIMODAL", "its questions are not of text alone"),
    ("UNSAFE_CODE", "it would run what the model writes"),
  ):
    if getattr(task, name, False):
      raise ValueError(f"{task.task_name}: {what}")
  task.build_all_requests(limit=limit)
  return [[r.request_type, list(r.args)] for r in task.instances]


def _choose_metric(loaded: Any, name: str, metric: str) -> str:
  """Finds the metric of a task that says which documents are right.

  Args:
    loaded: of `_load`.
    name: of the task.
    metric: as `reading.probe` has it; "" takes the only one there is.

  Returns:
    It, with ",FILTER" behind it where the task has filters.

  Raises:
    ConfigError: there is no such metric, or not one alone.
  """
  found: list[list[str]] = []
  for task in loaded["tasks"].values():
    higher = task.higher_is_better()
    names = [x for x in task.aggregation() if higher.get(x)]
    filters = [f.name for f in task._filters]
    found.append([_key(x, f) for f in filters for x in names])
  # Of all tasks of a group.
  valid = [x for x in found[0] if all(x in names for names in found)]
  if metric in valid or (not metric and len(valid) == 1):
    return metric or valid[0]
  forms = ", ".join(repr(f"task:{name}:{x}") for x in valid) or "none"
  said = f"task:{name}" + (f":{metric}" if metric else "")
  raise ConfigError(
    f"reading.probe = {said!r}: must name a metric of right answers of the "
    f"task; there are {forms}"
  )


def _key(metric: str, filter_name: str) -> str:
  """Names a metric as scores do."""
  return metric if filter_name == "none" else f"{metric},{filter_name}"


def _right_answers(results: Mapping[str, Any], metric: str) -> Answers:
  """Extracts which documents were answered rightly.

  Args:
    results: of lm-eval, with samples.
    metric: of `_choose_metric`.

  Raises:
    ConfigError: the metric is neither 0 nor 1 of a document.
  """
  out: Answers = {}
  for task, samples in results["samples"].items():
    for sample in samples:
      name = metric.partition(",")[0]
      if _key(name, sample["filter"]) != metric:
        continue
      value = sample[name]
      if not isinstance(value, bool | int | float | np.number) or (
        value not in (0, 1)
      ):
        raise ConfigError(
          f"reading.probe: {metric} of document {sample['doc_id']} of "
          f"{task} is {value!r}; only a metric that is 0 or 1 can decide "
          "integrity"
        )
      out[f"{task}/{sample['doc_id']}"] = bool(value)
  return out


def _scores_of(name: str, results: Mapping[str, Any]) -> Scores:
  """Extracts metrics from the results of lm-eval.

  They are those of a task, or of a group as a whole. A tag, and a group without
  metrics of its own, has those of each of its tasks.
  """
  counts = {k: v["effective"] for k, v in results["n-samples"].items()}
  metrics = results["results"]
  whole = _numbers(metrics.get(name, {}))
  if whole:
    return {name: {**whole, "n": sum(counts.values())}}
  return {k: {**_numbers(metrics[k]), "n": n} for k, n in counts.items()}


def _numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
  """Extracts numbers under keys "metric,filter"; drops the filter "none"."""
  out: dict[str, float | None] = {}
  for key, value in values.items():
    if "," in key:
      number = isinstance(value, int | float) and math.isfinite(value)
      out[key.removesuffix(",none")] = float(value) if number else None
  return out


def _raise_if_stopped() -> None:
  """Raises Preempted in all processes if a signal asked one to stop."""
  if processes.read_vote(processes.vote(signals.stop_requested())):
    raise signals.Preempted("in a task of an eval")
