"""Arms: trained from the organism, evaluated on the way, judged at the end."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import ArmConfig
from bct_jax.config.eval_steps import observed_steps, task_steps
from bct_jax.data.batches import Dataset
from bct_jax.evals import verdict
from bct_jax.evals.evaluate import add_rewards, mark_decorated, measure_rows
from bct_jax.evals.rewards import make_reward
from bct_jax.evals.schema import Gradients, terminal_line
from bct_jax.experiment import gradient_log
from bct_jax.experiment.draw_completions import draw_completions
from bct_jax.experiment.eval_rollouts import sample_arms
from bct_jax.experiment.organism import organism_weights
from bct_jax.experiment.plan import Plan
from bct_jax.experiment.reference_logprobs import with_logprobs
from bct_jax.experiment.run_state import TrainRun
from bct_jax.experiment.training import Failure, train_runs
from bct_jax.infra import files, memory, processes, shared_files
from bct_jax.infra.progress import log_line
from bct_jax.interop import lm_eval_tasks
from bct_jax.models.lora import Weights
from bct_jax.objectives import data_needs, objective_of, policy_of
from bct_jax.runtime.weights import load_weights, record_origin
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.train.step import NumericalError


def run_arms(
  plan: Plan, digest: str, workdirs: Mapping[str, Path], vmap: bool = False
) -> dict[str, dict[str, Any] | Failure]:
  """Trains and judges arms together.

  Args:
    plan: with these arms.
    digest: of the organism, which is in organisms/ of every run directory.
    workdirs: the run directory of each arm.
    vmap: see training.train_runs.

  A control that begins with the weights of another arm is run by itself.

  Returns:
    The record of each arm, what it said when it was done; or what ended it.
  """
  out: dict[str, dict[str, Any] | Failure] = {}
  arms: dict[str, _Arm] = {}
  organism, before = Path(), None

  def start() -> Weights:
    if before is not None:
      return load_weights(plan.runtime, before)
    return organism_weights(plan, organism)

  runs = []
  for name, workdir in workdirs.items():
    folder, organism = workdir / "arms" / name, workdir / "organisms" / digest
    if (
      record := shared_files.read_json_or_none(folder / "done.json")
    ) is not None:
      out[name] = record
      continue
    arm = arms[name] = _Arm(plan, name, organism, folder)
    before = arm.before
    try:
      dataset = _examples(plan, name, organism, folder, start)
      runs.append(
        TrainRun(
          name, folder, arm.config, dataset, arm.eval_steps, arm.task_steps
        )
      )
    except ValueError as e:
      out[name] = e

  def evaluate(step: int, due: dict[str, Weights]) -> dict[str, NumericalError]:
    pairs = [(arms[name], weights) for name, weights in due.items()]
    return _evaluate(plan, step, pairs, vmap)

  found = train_runs(plan, runs, start, evaluate, vmap) if runs else {}
  memory.release_memory()
  for name, made in found.items():
    out[name] = made if isinstance(made, Exception) else arms[name].finish()
  return {name: out[name] for name in workdirs}


def _evaluate(
  plan: Plan, step: int, due: Sequence[tuple["_Arm", Weights]], vmap: bool
) -> dict[str, NumericalError]:
  """Samples and saves the evals of a step that are not there yet.

  Adapters that one program trains are sampled in one batch too, also with those
  whose eval was saved before a kill: what else is sampled decides the rounding.
  Otherwise each is sampled alone, which on a CPU is faster.

  Returns:
    What is wrong with arms whose weights give numbers that are not finite.
  """
  parts = [due] if vmap else [[one] for one in due]
  broken = set()
  for part in parts:
    arms, weights = zip(*part, strict=True)
    title = f"{', '.join(arm.name for arm in arms)} eval {step}"
    partial = arms[0].partial(step)
    known = [arm.knows(step) for arm in arms]
    rows: list[Any] = [None] * len(part)
    if step > 0 and not all(known):
      rows = _sample(plan, weights, title, partial)
    bad = {a.name for a, x in zip(arms, rows, strict=True) if not _finite(x)}
    new = [
      (arm, own, one)
      for arm, own, one, there in zip(arms, rows, weights, known, strict=True)
      if not there and arm.name not in bad
    ]
    for arm, _, one in new:
      if step > 0 and step in arm.task_steps:
        arm.run_tasks(step, one)

    def save(new=new, partial=partial) -> None:
      for arm, own, _ in new:
        arm.save_eval(step, own)
      partial.unlink(missing_ok=True)

    processes.run_on_first(title, save)
    broken |= bad
  return {
    name: NumericalError(
      f"log-probabilities in the eval at step {step} are not finite"
    )
    for name in broken
  }


def _sample(
  plan: Plan, weights: Sequence[Weights], title: str, partial: Path
) -> list[list[dict[str, Any]]]:
  rows = sample_arms(plan, weights, title, partial)
  for i, own in enumerate(rows):
    if weights[1:] and not _finite(own):
      # Its own fault, or that of another whose place in the cache it took over.
      (rows[i],) = sample_arms(plan, [weights[i]], f"{title}, arm {i} alone")
  return rows


def _finite(rows: Sequence[Mapping[str, Any]] | None) -> bool:
  numbers = [v for row in rows or () for v in row.values()]
  return all(math.isfinite(v) for v in numbers if isinstance(v, float))


class _Arm:
  """The evals of an arm and what follows from them."""

  def __init__(self, plan: Plan, name: str, organism: Path, folder: Path):
    self.plan, self.name, self.folder = plan, name, folder
    self.organism = organism
    self.config = plan.config.arms[name]
    # The arm whose last weights it begins with; None is the organism.
    reverses = self.config.control == "reversal"
    self.before = folder.with_name(self.config.of) if reverses else None
    evals, steps = plan.config.eval, self.config.train.steps
    self.task_steps = task_steps(evals, steps)
    self.eval_steps = observed_steps(evals, steps)
    # One that goes on from the organism's is over the model's own params.
    made = plan.config.organism
    continued = made.lora.rank and not made.merge_lora
    over = None if plan.install is None or continued else organism
    record_origin(folder, plan.runtime, self.config.lora, over)

  def partial(self, step: int) -> Path:
    return self.folder / "rollouts" / f"step_{step}.partial.jsonl"

  def knows(self, step: int) -> bool:
    """Whether the eval of a step is saved."""
    lines = shared_files.read_lines(self.folder / "evals.jsonl")
    return any(line["step"] == step for line in lines)

  def run_tasks(self, step: int, weights: Weights) -> None:
    """Runs the tasks of a step that are not done; `save_eval` reads them."""
    assert self.plan.tasks is not None
    path, title = self.folder / lm_eval_tasks.FILE, f"{self.name} eval {step}"
    self.plan.tasks.run(lambda: weights, path, step, title)

  def save_eval(self, step: int, rows: list[dict[str, Any]] | None) -> None:
    """Saves rollouts and rates; no rows are those of what it begins with."""
    plan = self.plan
    scored, at = self.folder, step  # where the scores of tasks are
    if rows is None:
      path, scored, at = self.organism / "rollouts.jsonl", self.organism, 0
      if self.before is not None:
        scored, at = self.before, plan.config.arms[self.config.of].train.steps
        path = self.before / "rollouts" / f"step_{at}.jsonl"
      rows = files.read_lines(path)
    rows = mark_decorated(rows, DECORATIONS[self.config.train.decoration])
    if _trains_on_own_samples(self.config):
      policy = policy_of(self.config)
      give = make_reward(plan.setting, policy.reward, policy.length_target)
      rows = add_rewards(rows, plan.prompts, give)
    files.write_lines(self.folder / "rollouts" / f"step_{step}.jsonl", rows)
    record = measure_rows(rows, step)
    if plan.config.eval.gradients:
      line = gradient_log.read_gradients(self.folder, step)
      record = dataclasses.replace(record, gradients=Gradients.from_json(line))
    if plan.tasks is not None and step in self.task_steps:
      tasks = plan.tasks.read(scored / lm_eval_tasks.FILE, at)
      record = dataclasses.replace(record, tasks=tasks)
    line = record.to_json()
    files.append_line(self.folder / "evals.jsonl", line)
    log_line(f"{self.name} {terminal_line(line)}")

  def finish(self) -> dict[str, Any]:
    """Writes done.json and returns its content."""

    def save() -> dict[str, Any]:
      record = _arm_result(self.plan, self.name, self.folder, self.organism)
      files.write_json(self.folder / "done.json", record)
      return record

    return processes.run_on_first(f"result of {self.name}", save)


def _examples(
  plan: Plan,
  name: str,
  organism: Path,
  folder: Path,
  start: Callable[[], Weights],
) -> Dataset:
  """What an arm trains on, with all that must come from the organism first."""
  arm, dataset = plan.config.arms[name], plan.arms[name]
  if arm.train.source == "on_policy" and not _trains_on_own_samples(arm):
    dataset = draw_completions(
      plan, name, organism, lambda: organism_weights(plan, organism)
    )
  path = folder / "reference_logprobs.jsonl"
  return with_logprobs(plan, name, arm, dataset, path, organism.name, start)


def _trains_on_own_samples(arm: ArmConfig) -> bool:
  return data_needs(objective_of(arm)).trains_on_own_samples


def _arm_result(
  plan: Plan, name: str, folder: Path, organism: Path
) -> dict[str, Any]:
  """The arm's part of result.json; judged by the organism, also a reversal,
  which began elsewhere."""
  arm = plan.config.arms[name]
  curve = files.read_lines(folder / "evals.jsonl")

  def labels(path: Path) -> list[str]:
    rows = files.read_lines(path)
    return [r["label"] for r in rows if r["split"] == "eval"]

  lines = files.read_lines(folder / "metrics.jsonl")
  return {
    "name": name,
    "control": arm.control or None,
    "of": arm.of or None,
    "objective": arm.train.objective,
    "lr": arm.optim.lr,
    "rank": arm.lora.rank or None,
    "source": arm.train.source,
    "file": arm.train.file,
    "decoration": arm.train.decoration,
    "seed": arm.train.seed,
    "steps": arm.train.steps,
    "curve": curve,
    **verdict.summarize_arm(
      curve,
      files.read_json(organism / "gate.json"),
      labels(organism / "rollouts.jsonl"),
      labels(folder / "rollouts" / f"step_{curve[-1]['step']}.jsonl"),
      plan.config.eval.seed,
    ),
    "trained_tokens": sum(x["trained_tokens"] for x in lines),
    "seconds": sum(x["seconds"] for x in lines),
  }
