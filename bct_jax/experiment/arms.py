"""Trains arms from the organism, evaluates them on the way and reads them.

The time line of one arm, whose evals are due after updates 0, 2 and 4:

  begin    completions that the organism must draw, the reference's log-probs
  update   -     1  2        3  4
  eval     0        2           4      rollouts/, gradients, tasks, evals.jsonl
  refine   with eval.refine: evals between these, see refine.py
  end                                  done.json, with the reading
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import ConfigError
from bct_jax.config.eval_steps import observed_steps, task_steps
from bct_jax.data.batches import Dataset
from bct_jax.evals import crossings, outcome, reading
from bct_jax.evals.evaluate import add_rewards, mark_decorated, measure_rows
from bct_jax.evals.rewards import make_reward
from bct_jax.evals.schema import Gradients, terminal_line
from bct_jax.evals.task_rows import task_rows
from bct_jax.experiment import gradient_log
from bct_jax.experiment.arm_files import (
  check_files,
  read_done,
  trains_on_own_samples,
)
from bct_jax.experiment.draw_completions import draw_completions
from bct_jax.experiment.eval_facts import keep_eval_facts
from bct_jax.experiment.eval_rollouts import (
  Kept,
  is_finite,
  partials,
  sample_arms,
)
from bct_jax.experiment.growth import ArmBefore
from bct_jax.experiment.organism import organism_weights
from bct_jax.experiment.plan import Plan
from bct_jax.experiment.reference_logprobs import with_logprobs
from bct_jax.experiment.refine import refine_arms
from bct_jax.experiment.run_state import TrainRun
from bct_jax.experiment.training import Failure, train_runs
from bct_jax.infra import files, memory, processes, shared_files
from bct_jax.infra.progress import log_line
from bct_jax.interop import lm_eval_tasks
from bct_jax.models.lora import Weights
from bct_jax.objectives import policy_of
from bct_jax.runtime.weights import load_weights, record_origin
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.train.step import NumericalError


def run_arms(
  plan: Plan, digest: str, workdirs: Mapping[str, Path], vmap: bool = False
) -> dict[str, dict[str, Any] | Failure]:
  """Trains and judges arms together.

  A control that begins with the weights of another arm is run by itself.

  Args:
    plan: of an experiment with these arms.
    digest: of the organism, which is in organisms/ of every run directory.
    workdirs: the run directory of each arm.
    vmap: whether one program trains all of them, see training.train_runs.

  Returns:
    For each arm the content of its done.json, or the error that ended it.
  """
  out: dict[str, dict[str, Any] | Failure] = {}
  arms: dict[str, _Arm] = {}
  organism, origin = Path(), None

  def start() -> Weights:
    if origin is not None:
      return load_weights(plan.runtime, origin)
    return organism_weights(plan, organism)

  runs = []
  for name, workdir in workdirs.items():
    folder, organism = workdir / "arms" / name, workdir / "organisms" / digest
    try:
      if check_files(plan, name, folder):
        out[name] = read_done(folder, digest)
        continue
      arm = arms[name] = _Arm(plan, name, organism, folder)
      origin = arm.origin
      keep_eval_facts(plan, folder)
      arm.before.check_scorers(plan)
      dataset = _examples(plan, name, organism, folder, start)
      steps = arm.eval_steps, arm.task_steps
      runs.append(TrainRun(name, folder, arm.config, dataset, *steps))
    except ValueError as e:
      out[name] = e

  def evaluate(step: int, due: dict[str, Weights]) -> dict[str, NumericalError]:
    pairs = [(arms[name], weights) for name, weights in due.items()]
    return _evaluate(plan, step, pairs, vmap)

  outcomes = train_runs(plan, runs, start, evaluate, vmap) if runs else {}
  # Their last weights are on disk, and would take memory from here on.
  failures = {
    k: x if isinstance(x, Exception) else None for k, x in outcomes.items()
  }
  del outcomes
  memory.release_memory()
  if plan.config.eval.refine:
    failures = refine_arms(plan, runs, failures, start, evaluate, vmap)
  for name, failure in failures.items():
    out[name] = arms[name].finish() if failure is None else failure
  return {name: out[name] for name in workdirs}


def _evaluate(
  plan: Plan, step: int, due: Sequence[tuple["_Arm", Weights]], vmap: bool
) -> dict[str, NumericalError]:
  """Samples and saves the evals of a step that are not saved yet.

  Adapters that one program trains are sampled in one batch too, together with
  those whose eval was saved before a kill: what else is sampled decides the
  rounding. Otherwise each arm is sampled alone, which is faster on a CPU.

  Args:
    plan: of the experiment.
    step: of the evals.
    due: arms whose evals are due, with their weights.
    vmap: whether one program trains the arms.

  Returns:
    The errors of arms whose weights give numbers that are not finite.
  """
  batches = [due] if vmap else [[pair] for pair in due]
  errors = {}
  for batch in batches:
    arms, weights = zip(*batch, strict=True)
    title = f"{', '.join(arm.name for arm in arms)} eval {step}"
    partial = arms[0].partial(step)
    saved = [arm.has_eval(step) for arm in arms]
    rollouts: list[Any] = [None] * len(batch)
    if step > 0 and not all(saved):
      kept = [arm.before.rows(step) for arm in arms]
      rollouts = _sample(plan, weights, title, partial, kept)
    unsaved: list[tuple[_Arm, Any]] = []
    for i, arm in enumerate(arms):
      if not is_finite(rollouts[i]):
        errors[arm.name] = NumericalError(
          f"log-probabilities in the eval at step {step} are not finite"
        )
      elif not saved[i]:
        unsaved.append((arm, rollouts[i]))
        if step > 0 and step in arm.task_steps:
          arm.run_tasks(step, weights[i])

    def save(unsaved=unsaved, partial=partial) -> None:
      for arm, rows in unsaved:
        arm.save_eval(step, rows)
      for path in partials(partial):
        files.delete(path)

    processes.run_on_first(title, save)
  return errors


def _sample(
  plan: Plan,
  weights: Sequence[Weights],
  title: str,
  partial: Path,
  kept: Sequence[Kept],
) -> list[list[dict[str, Any]]]:
  """Samples several weights in one batch, and what is not finite once more."""
  rollouts = sample_arms(plan, weights, title, partial, kept)
  for i, rows in enumerate(rollouts):
    if weights[1:] and not is_finite(rows):
      # These weights may be at fault, or those of another arm whose place in
      # the cache a row took over. Sampled alone they tell.
      name = f"{title}, arm {i} alone"
      (rollouts[i],) = sample_arms(plan, [weights[i]], name, None, [kept[i]])
  return rollouts


class _Arm:
  """Holds an arm, its evals and what follows from them."""

  def __init__(self, plan: Plan, name: str, organism: Path, folder: Path):
    self.plan, self.name, self.folder = plan, name, folder
    self.organism = organism
    self.config = plan.config.arms[name]
    # The folder of the arm whose last weights this arm begins with; None means
    # that it begins with the organism's.
    reverses = self.config.control == "reversal"
    self.origin = folder.with_name(self.config.of) if reverses else None
    evals, steps = plan.config.eval, self.config.train.steps
    self.task_steps = task_steps(evals, steps)
    self.before = ArmBefore(plan, folder)
    observed = observed_steps(plan.config, self.config)
    self.eval_steps = tuple(sorted({*observed, *self.before.steps}))
    # An adapter that goes on from the organism's adapter is over the model's
    # own params, not over the organism's.
    install = plan.config.organism
    over_organism = install.has_weights and not install.keeps_adapter
    base = organism if over_organism else None
    record_origin(folder, plan.runtime, self.config.lora, base)

  def partial(self, step: int) -> Path:
    """Returns the file of an eval's completions while it is sampled."""
    return self.folder / "rollouts" / f"step_{step}.partial.jsonl"

  def has_eval(self, step: int) -> bool:
    """Tells whether the eval of a step is saved."""
    lines = shared_files.read_lines(self.folder / "evals.jsonl")
    return any(line["step"] == step for line in lines)

  def run_tasks(self, step: int, weights: Weights) -> None:
    """Runs the tasks of a step that are not done; `save_eval` reads them."""
    assert self.plan.tasks is not None
    path, title = self.folder / lm_eval_tasks.FILE, f"{self.name} eval {step}"
    self.plan.tasks.run(lambda: weights, path, step, title)

  def save_eval(self, step: int, rows: list[dict[str, Any]] | None) -> None:
    """Saves rollouts and rates of an eval; call in the first process.

    Args:
      step: of the eval.
      rows: its rollouts. None takes those of the weights that the arm begins
        with, which were evaluated before.
    """
    plan = self.plan
    self.before.check_updates(step)
    # Where the scores of tasks are, and at which step.
    scored, at = self.folder, step
    if rows is None:
      path, scored, at = self.organism / "rollouts.jsonl", self.organism, 0
      if self.origin is not None:
        scored, at = self.origin, plan.config.arms[self.config.of].train.steps
        path = self.origin / "rollouts" / f"step_{at}.jsonl"
      rows = _read_rows(plan, path)
    rows = mark_decorated(rows, DECORATIONS[self.config.train.decoration])
    if trains_on_own_samples(self.config):
      policy = policy_of(self.config)
      reward = make_reward(plan.setting, policy.reward, policy.length_target)
      rows = add_rewards(rows, plan.prompts, reward)
    files.write_lines(self.folder / "rollouts" / f"step_{step}.jsonl", rows)
    record = measure_rows(rows, step)
    if plan.config.eval.gradients:
      line = gradient_log.read_gradients(self.folder, step)
      record = dataclasses.replace(record, gradients=Gradients.from_json(line))
    if plan.tasks is not None and step in self.task_steps:
      tasks = plan.tasks.read(scored / lm_eval_tasks.FILE, at)
      record = dataclasses.replace(record, tasks=tasks)
    line = record.to_json()
    files.insert_line(self.folder / "evals.jsonl", line)
    log_line(f"{self.name} {terminal_line(line)}")

  def finish(self) -> dict[str, Any]:
    """Writes done.json and returns its content."""

    def save() -> dict[str, Any]:
      record = _arm_result(self.plan, self.name, self.folder, self.organism)
      files.write_json(self.folder / "done.json", record)
      self.before.drop_weights()
      return record

    return processes.run_on_first(f"result of {self.name}", save)


def _examples(
  plan: Plan,
  name: str,
  organism: Path,
  folder: Path,
  start: Callable[[], Weights],
) -> Dataset:
  """Makes an arm's dataset, with all that must come from the organism first.

  Args:
    plan: of the experiment.
    name: of the arm.
    organism: folder of the organism.
    folder: of the arm.
    start: loads the weights that the arm begins with.
  """
  arm, dataset = plan.config.arms[name], plan.arms[name]
  if arm.train.source == "on_policy" and not trains_on_own_samples(arm):
    dataset = draw_completions(
      plan, name, organism, lambda: organism_weights(plan, organism)
    )
  path = folder / "reference_logprobs.jsonl"
  return with_logprobs(plan, name, arm, dataset, path, organism.name, start)


def _read_rows(plan: Plan, path: Path) -> list[dict[str, Any]]:
  """Reads rollouts of the plan's prompts.

  Raises:
    ConfigError: they are of other prompts, as where another process evaluates
      the same organism with another `eval.seed`.
  """
  rows = files.read_lines(path)
  asked = [list(p.example.messages) for p in plan.prompts]
  if [row["prompt"] for row in rows[: len(asked)]] != asked:
    raise ConfigError(
      f"{path}: its prompts are not those of this config (eval.seed = "
      f"{plan.config.eval.seed}): another run has evaluated the organism "
      "since; run this command again when that run has ended"
    )
  return rows


def _arm_result(
  plan: Plan, name: str, folder: Path, organism: Path
) -> dict[str, Any]:
  """Makes the arm's part of result.json from the files of the run.

  Every arm is read against the organism, also a reversal that began elsewhere.
  """
  arm = plan.config.arms[name]
  curve = files.read_lines(folder / "evals.jsonl")
  before = _read_rows(plan, organism / "rollouts.jsonl")
  last = curve[-1]["step"]
  after = _read_rows(plan, folder / "rollouts" / f"step_{last}.jsonl")
  lines = files.read_lines(folder / "metrics.jsonl")
  losses = crossings.mean_losses(lines, [point["step"] for point in curve])
  then, now = task_rows(organism, folder, last, plan.config.reading)
  read = reading.read_arm(
    curve,
    [*before, *then],
    [*after, *now],
    plan.config.reading,
    losses,
    arm.train.has_style,
  )
  return {
    "schema": outcome.SCHEMA,
    "name": name,
    "organism": organism.name,
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
    "reading": read.to_json(),
    **outcome.summarize_arm(curve, before, after),
    "trained_tokens": sum(x["trained_tokens"] for x in lines),
    "seconds": sum(x["seconds"] for x in lines),
  }
