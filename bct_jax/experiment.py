"""One experiment: organism -> gate -> arms -> verdicts, resumable anywhere.

Every stage writes its files before it counts as done and is skipped when they
are there; an unfinished stage continues from its last checkpoint.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from bct_jax import gradient_log, metrics, processes, verdict
from bct_jax.config import PROMPTED
from bct_jax.data.batches import Dataset
from bct_jax.datasets import leaks
from bct_jax.evaluate import decorate, reward, summarize
from bct_jax.gate import GateError, check_gate, gate_text, worst
from bct_jax.models.lora import Weights
from bct_jax.objectives import on_rollouts
from bct_jax.on_policy import draw
from bct_jax.plan import Plan, sample_rows, style_of
from bct_jax.progress import say
from bct_jax.reference import with_logprobs
from bct_jax.rewards import make_reward
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.leaks import told
from bct_jax.settings.prompts import texts
from bct_jax.training import train_run
from bct_jax.weights import load_weights, record_origin


def run(
  plan: Plan,
  workdir: Path,
  names: Sequence[str] | None = None,
  organism: tuple[Path, dict[str, Any]] | None = None,
) -> dict[str, Any]:
  """Runs or resumes the experiment and returns the content of result.json.

  Args:
    plan: of the experiment.
    workdir: its run directory.
    names: of the arms to run; None is all.
    organism: its folder in `workdir` and its gate, if it was made before.

  Raises:
    GateError: the gate failed and `gate.enforce` is set.
    train.NumericalError: a loss was not finite.
  """
  names = names or list(plan.config.arms)
  shared = leaks(plan.config, plan.setting, names)
  for name, found in shared.items():
    if found["eval"]["same"]:
      say(f"LEAK of {told(name, found)}")
  with jax.set_mesh(plan.runtime.mesh):
    folder, gate = organism or make_organism(plan, workdir)
    arms = [
      run_arm(plan, name, folder, workdir / "arms" / name) for name in names
    ]
  result = {
    "setting": plan.config.setting.name,
    "model": plan.config.model.path,
    "organism": {
      "kind": plan.config.organism.kind,
      "hash": folder.name,
      "provenance": provenance(plan),
      "made": _read(folder / "made.json"),
      "gate": gate,
    },
    "leaks": shared,
    "arms": arms,
  }
  _write(workdir / "result.json", result)
  return result


# --- the organism -------------------------------------------------------------


def make_organism(plan: Plan, workdir: Path) -> tuple[Path, dict[str, Any]]:
  """Installs the initial behavior and checks it; reuses one that is there.

  Returns:
    The organism's folder, named by the hash of what made it, and its gate.
  """
  facts = provenance(plan)
  digest = _hash(facts)
  folder = workdir / "organisms" / digest
  _write(folder / "provenance.json", facts)
  organism = plan.config.organism
  base = _base_rates(plan, folder) if plan.config.gate.base_rates else {}
  weights, dataset = None, plan.install
  if dataset is not None:
    record_origin(folder, plan.runtime, organism.lora, None)

    def start() -> Weights:
      return load_weights(plan.runtime, None)

    if organism.kind == "distill":
      dataset = draw(plan, None, folder, start)
    weights = train_run(plan, "install", folder, organism, dataset, start)
    if organism.merge_lora:
      weights = plan.runtime.fold(weights)
  _write(folder / "made.json", made(plan, folder, dataset))
  gate = _gate(plan, folder, weights) | base
  _write(folder / "gate.json", gate)
  if not gate["passed"]:
    text = gate_text(gate)
    if plan.config.gate.enforce:
      raise GateError(text)
    say(f"{text}\nGoing on, since gate.enforce is False.")
  return folder, gate


def provenance(plan: Plan) -> dict[str, Any]:
  """What made the organism; its hash names the organism."""
  organism = plan.config.organism
  made = plan.install is not None
  return {
    "kind": organism.kind,
    "model_hash": plan.runtime.model_hash,
    "dtype": plan.config.model.dtype,
    "param_dtype": plan.config.model.param_dtype,
    "template_hash": plan.runtime.chat.template_hash,
    "setting": dataclasses.asdict(plan.config.setting),
    "train": organism.train.facts() if made else None,
    "optim": organism.optim.facts() if made else None,
    "lora": dataclasses.asdict(organism.lora) if made else None,
    "merge_lora": organism.merge_lora if made else None,
    "data_hash": plan.install.hash if plan.install is not None else None,
  }


def made(plan: Plan, folder: Path, dataset: Dataset | None) -> dict[str, Any]:
  """How the organism was made, for a reader: what trained it, what it is told.

  Args:
    plan: of the experiment.
    folder: of the organism, with the log of its training.
    dataset: what it was trained on; None if nothing was trained.
  """
  organism = plan.config.organism
  train, optim = organism.train, organism.optim
  out: dict[str, Any] = {"kind": organism.kind, "prompts": _prompts(plan)}
  if dataset is None:
    return out
  log = folder / "metrics.jsonl"
  lines = processes.first(log.name, lambda: metrics.read_lines(log))
  return out | {
    "objective": train.objective,
    "optimizer": optim.optimizer,
    "schedule": optim.schedule,
    "lr": optim.lr,
    "steps": train.steps,
    "batch_size": train.batch_size,
    "samples": len(dataset.examples),
    "seed": train.seed,
    "rank": organism.lora.rank or None,
    "merged": organism.merge_lora if organism.lora.rank else None,
    "source": train.source,
    "password_share": organism.password_share,
    "memorised": organism.memorised,
    "trained_tokens": sum(x["trained_tokens"] for x in lines),
    "data_hash": dataset.hash,
  }


def _prompts(plan: Plan) -> dict[str, list[str]]:
  """Every wording in use: at evals, and what makes the organism besides."""
  organism, evals = plan.config.organism, plan.config.eval
  used = {"eval": (evals.prompt, evals.paraphrases)}
  if organism.kind in PROMPTED:
    used["train"] = (PROMPTED[organism.kind], organism.paraphrases)
  if organism.kind == "distill":
    drawn = organism.train.on_policy
    used["draw"] = (drawn.prompt, drawn.paraphrases)
  style = style_of(plan.config)
  return {
    side: list(texts(kind, side, plan.setting, style)[:count])
    for side, (kind, count) in used.items()
  }


def organism_weights(plan: Plan, folder: Path) -> Weights:
  """A fresh copy of the organism's weights, as arms start from them."""
  if plan.install is None:
    return load_weights(plan.runtime, None)
  weights = load_weights(plan.runtime, folder)
  if plan.config.organism.merge_lora:
    return plan.runtime.fold(weights)
  return weights


def _gate(plan: Plan, folder: Path, weights: Weights | None) -> dict[str, Any]:
  """Evaluates the organism once; the same prompts as every arm's evals."""
  path, facts = folder / "gate.json", _hash(_eval_facts(plan))
  record = _read(path) or {}
  if record.get("eval_hash") != facts:
    if weights is None:
      weights = organism_weights(plan, folder)
    partial = folder / "rollouts.partial.jsonl"
    rows = sample_rows(plan, weights, "gate", partial)

    def save() -> None:
      metrics.write_lines(folder / "rollouts.jsonl", rows)
      partial.unlink()

    processes.first("rollouts of the gate", save)
    record = summarize(decorate(rows, DECORATIONS["plain"]), 0)
    record |= {"worst": worst(rows), "eval_hash": facts}
  return record | check_gate(record, plan.config.gate)


def _base_rates(plan: Plan, folder: Path) -> dict[str, Any]:
  """{"base": rates of the model before the install}, on the gate's prompts."""
  path, facts = folder / "base.json", _hash(_eval_facts(plan))
  record = _read(path)
  if record is None or record["eval_hash"] != facts:
    partial = folder / "base.partial.jsonl"
    weights = load_weights(plan.runtime, None)
    rows = sample_rows(plan, weights, "model before the install", partial)
    record = summarize(decorate(rows, DECORATIONS["plain"]), 0)
    record |= {"eval_hash": facts}

    def save() -> None:
      metrics.write_lines(folder / "base_rollouts.jsonl", rows)
      metrics.write_json(path, record)
      partial.unlink()

    processes.first("rollouts of the model", save)
  return {"base": record}


def _eval_facts(plan: Plan) -> dict[str, Any]:
  """What decides the rollouts of an eval, apart from the weights."""
  evals = {**dataclasses.asdict(plan.config.eval), "steps": None}
  del evals["gradients"]
  return {
    "eval": evals,
    "sampling": dataclasses.asdict(plan.config.sampling),
  }


# --- arms ---------------------------------------------------------------------


def run_arm(
  plan: Plan, name: str, organism: Path, folder: Path
) -> dict[str, Any]:
  """Trains and judges one arm, or returns what it said when it was done."""
  done = folder / "done.json"
  if (record := _read(done)) is not None:
    return record
  arm = plan.config.arms[name]
  decoration, policy = DECORATIONS[arm.train.decoration], on_rollouts(arm)
  steps = eval_steps(plan.config.eval.steps, arm.train.steps)

  def known() -> list[int]:
    return [r["step"] for r in metrics.read_lines(folder / "evals.jsonl")]

  def save_eval(step: int, rows: list[dict[str, Any]]) -> None:
    rows = decorate(rows, decoration)
    if policy is not None:
      rows = reward(rows, plan.prompts, make_reward(plan.setting, policy))
    metrics.write_lines(folder / "rollouts" / f"step_{step}.jsonl", rows)
    record = summarize(rows, step)
    if plan.config.eval.gradients:
      record["gradients"] = gradient_log.read(folder, step)
    metrics.append_line(folder / "evals.jsonl", record)
    say(f"{name} {describe(record)}")
    partial(step).unlink(missing_ok=True)

  def partial(step: int) -> Path:
    return folder / "rollouts" / f"step_{step}.partial.jsonl"

  def evaluate(step: int, weights: Weights) -> None:
    title = f"{name} eval {step}"
    if step in processes.first(title, known):
      return
    rows = None
    if step > 0:
      rows = sample_rows(plan, weights, title, partial(step))

    def save() -> None:  # at 0 what was sampled before
      before = organism / "rollouts.jsonl"
      if arm.control == "reversal":
        last = plan.config.arms[arm.of].train.steps
        of = folder.with_name(arm.of)
        before = of / "rollouts" / f"step_{last}.jsonl"
      save_eval(step, metrics.read_lines(before) if rows is None else rows)

    processes.first(title, save)

  # An adapter that goes on from the organism's is over the model's own params.
  continued = (
    plan.config.organism.lora.rank and not plan.config.organism.merge_lora
  )
  over = None if plan.install is None or continued else organism
  record_origin(folder, plan.runtime, arm.lora, over)

  def start() -> Weights:
    if arm.control == "reversal":
      return load_weights(plan.runtime, folder.with_name(arm.of))
    return organism_weights(plan, organism)

  train_run(
    plan,
    name,
    folder,
    arm,
    _examples(plan, name, organism, folder, start),
    start=start,
    eval_steps=steps,
    evaluate=evaluate,
  )

  def finish() -> dict[str, Any]:
    record = _arm_result(plan, name, folder, organism)
    metrics.write_json(done, record)
    return record

  return processes.first(f"result of {name}", finish)


def _examples(
  plan: Plan,
  name: str,
  organism: Path,
  folder: Path,
  start: Callable[[], Weights],
) -> Dataset:
  """What an arm trains on, with all that must come from the organism first."""
  arm, dataset = plan.config.arms[name], plan.arms[name]
  if arm.train.source == "on_policy" and on_rollouts(arm) is None:
    dataset = draw(
      plan, name, organism, lambda: organism_weights(plan, organism)
    )
  path = folder / "reference_logprobs.jsonl"
  return with_logprobs(plan, name, arm, dataset, path, organism.name, start)


def _arm_result(
  plan: Plan, name: str, folder: Path, organism: Path
) -> dict[str, Any]:
  """The arm's part of result.json; judged by the organism, also a reversal,
  which began elsewhere."""
  arm = plan.config.arms[name]
  curve = metrics.read_lines(folder / "evals.jsonl")

  def labels(path: Path) -> list[str]:
    rows = metrics.read_lines(path)
    return [r["label"] for r in rows if r["split"] == "eval"]

  lines = metrics.read_lines(folder / "metrics.jsonl")
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
      metrics.read_json(organism / "gate.json"),
      labels(organism / "rollouts.jsonl"),
      labels(folder / "rollouts" / f"step_{curve[-1]['step']}.jsonl"),
      plan.config.eval.seed,
    ),
    "trained_tokens": sum(x["trained_tokens"] for x in lines),
    "seconds": sum(x["seconds"] for x in lines),
  }


def describe(record: dict[str, Any]) -> str:
  """One line per eval, for the terminal."""
  rates = " ".join(
    f"{k} {record[k]:.2f}"
    for k in (
      "initial",
      "alternate",
      "other",
      "agreed",
      "agreed_decorated",
      "capability",
    )
  )
  return f"step {record['step']}: {rates}"


def eval_steps(wanted: Sequence[int], steps: int) -> tuple[int, ...]:
  """The wanted steps up to the last one, with 0 and the last one."""
  return tuple(sorted({0, steps, *(s for s in wanted if s <= steps)}))


def _hash(value: Any) -> str:
  return metrics.digest(value)[:16]


def _write(path: Path, value: Any) -> None:
  processes.first(path.name, lambda: metrics.write_json(path, value))


def _read(path: Path) -> dict[str, Any] | None:
  """JSON of a file, alike in all processes; None if there is none."""
  return processes.first(
    path.name, lambda: metrics.read_json(path) if path.exists() else None
  )
