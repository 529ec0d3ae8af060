"""Makes the organism of an experiment and runs its gate."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bct_jax.config import PROMPTED
from bct_jax.data.batches import Dataset
from bct_jax.evals.evaluate import (
  Prompt,
  make_prompts,
  mark_decorated,
  summarize_rows,
)
from bct_jax.evals.gate import GateError, check_gate, first_failures, gate_text
from bct_jax.experiment.draw_completions import draw_completions
from bct_jax.experiment.eval_rollouts import (
  Kept,
  is_finite,
  key_of,
  partials,
  sample_rows,
)
from bct_jax.experiment.other_run import take_organism
from bct_jax.experiment.plan import COUNTS, Plan, style_of
from bct_jax.experiment.training import train_run
from bct_jax.infra import files, shared_files
from bct_jax.infra.progress import log_line
from bct_jax.interop import lm_eval_tasks
from bct_jax.models.huggingface.adapter_folder import keep_adapter
from bct_jax.models.lora import Weights
from bct_jax.runtime.weights import ADAPTER, load_weights, record_origin
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.settings.prompts import prompt_wordings
from bct_jax.train.step import NumericalError


def organism_weights(plan: Plan, folder: Path) -> Weights:
  """Loads a fresh copy of the organism's weights, from which arms start."""
  if not plan.config.organism.has_weights:
    return load_weights(plan.runtime, None)
  weights = load_weights(plan.runtime, folder)
  if plan.config.organism.merge_lora:
    return plan.runtime.merge_adapter(weights)
  return weights


def make_organism(plan: Plan, workdir: Path) -> tuple[Path, dict[str, Any]]:
  """Installs the initial behavior and runs the gate, unless it is done.

  Args:
    plan: of the experiment.
    workdir: the run directory; the organism is in its organisms/.

  Returns:
    The organism's folder, named by the hash of what made it, and its gate.

  Raises:
    GateError: the gate failed and `gate.enforce` is set.
    train.NumericalError: a loss of the install was not finite.
  """
  if plan.tasks is not None:
    plan.tasks.load()
  facts = provenance(plan)
  folder = organism_folder(workdir, facts)
  if (other := plan.config.organism.from_run) is not None:
    take_organism(other, folder, facts)
    shared_files.fetch_folder(folder)
  shared_files.track(
    folder, f"remove {folder}: the same command then makes the organism again"
  )
  shared_files.write_json(folder / "provenance.json", facts)
  base = measure_base_rates(plan, folder)
  if plan.adapter is not None:
    record_origin(folder, plan.runtime, plan.adapter.lora, None)
    keep_adapter(plan.adapter, folder / ADAPTER)
    shared_files.fetch_folder(folder / ADAPTER)
  weights, dataset = None, plan.install
  if dataset is not None:
    weights, dataset = _install(plan, folder, dataset)
  shared_files.write_json(
    folder / "made.json", install_record(plan, folder, dataset)
  )
  gate = run_gate(plan, folder, weights, base)
  shared_files.write_json(folder / "gate.json", gate)
  if not gate["passed"]:
    text = gate_text(gate, plan.config.gate)
    if plan.config.gate.enforce:
      raise GateError(
        f"{text}\nAll answers: {folder / 'rollouts.jsonl'}. No arm was "
        "trained; with --config.gate.enforce=False they would be."
      )
    log_line(f"{text}\nGoing on, since gate.enforce is False.")
  if plan.tasks is not None:

    def current_weights() -> Weights:
      return organism_weights(plan, folder) if weights is None else weights

    plan.tasks.run(current_weights, folder / lm_eval_tasks.FILE, 0, "organism")
  return folder, gate


def _install(
  plan: Plan, folder: Path, dataset: Dataset
) -> tuple[Weights, Dataset]:
  """Trains the organism.

  Args:
    plan: of the experiment.
    folder: of the organism.
    dataset: what it is trained on, if nothing is distilled.

  Returns:
    Its weights, and what it was trained on.
  """
  organism = plan.config.organism
  record_origin(folder, plan.runtime, organism.lora, None)

  def start() -> Weights:
    return load_weights(plan.runtime, None)

  if organism.kind == "distill":
    dataset = draw_completions(plan, None, folder, start)
  weights = train_run(plan, "install", folder, organism, dataset, start)
  if organism.merge_lora:
    weights = plan.runtime.merge_adapter(weights)
  return weights, dataset


def organism_folder(workdir: Path, facts: dict[str, Any]) -> Path:
  """Returns the folder of the organism with this `provenance`."""
  return workdir / "organisms" / _hash(facts)


def provenance(plan: Plan) -> dict[str, Any]:
  """Collects what made the organism; the hash of it names the organism."""
  organism = plan.config.organism
  installed = plan.install is not None
  facts = {
    "kind": organism.kind,
    "model_hash": plan.runtime.model_hash,
    "dtype": plan.config.model.dtype,
    "param_dtype": plan.config.model.param_dtype,
    "template_hash": plan.runtime.chat.template_hash,
    "setting": dataclasses.asdict(plan.config.setting),
    "train": organism.train.facts() if installed else None,
    "optim": organism.optim.facts() if installed else None,
    "lora": organism.lora.facts() if installed else None,
    "merge_lora": organism.merge_lora if installed else None,
    "data_hash": plan.install.hash if plan.install is not None else None,
  }
  if plan.adapter is not None:
    facts |= {
      "adapter_hash": plan.adapter.hash,
      "merge_lora": organism.merge_lora,
    }
  return facts


def install_record(
  plan: Plan, folder: Path, dataset: Dataset | None
) -> dict[str, Any]:
  """Describes for a reader how the organism was made, as made.json has it.

  Args:
    plan: of the experiment.
    folder: of the organism, with the log of its training.
    dataset: what the organism was trained on; None if it was not trained.
  """
  organism = plan.config.organism
  train, optim = organism.train, organism.optim
  out: dict[str, Any] = {"kind": organism.kind, "prompts": _prompts(plan)}
  if plan.adapter is not None:
    adapter = plan.adapter
    return out | {
      "adapter": organism.adapter,
      "adapter_hash": adapter.hash,
      "adapter_base": adapter.base,
      "rank": adapter.lora.rank,
      "merged": organism.merge_lora,
    }
  if dataset is None:
    return out
  log = folder / "metrics.jsonl"
  lines = shared_files.read_lines(log)
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
    **({"mix": dict(train.mix)} if train.mix else {}),
    "password_share": organism.password_share,
    "memorised": organism.memorised,
    "trained_tokens": sum(x["trained_tokens"] for x in lines),
    "data_hash": dataset.hash,
  }


def _prompts(plan: Plan) -> dict[str, list[str]]:
  """Lists the wordings of each prompt in use.

  Returns:
    Wordings by the prompt's use: `eval`, and `train` and `draw` if a prompt
    makes the organism.
  """
  organism, evals = plan.config.organism, plan.config.eval
  prompts = {"eval": (evals.prompt, evals.paraphrases)}
  if organism.kind in PROMPTED:
    prompts["train"] = (PROMPTED[organism.kind], organism.paraphrases)
  if organism.kind == "distill":
    draw = organism.train.on_policy
    prompts["draw"] = (draw.prompt, draw.paraphrases)
  style = style_of(plan.config)
  return {
    side: list(prompt_wordings(kind, side, plan.setting, style)[:count])
    for side, (kind, count) in prompts.items()
  }


def run_gate(
  plan: Plan,
  folder: Path,
  weights: Weights | None,
  base: dict[str, Any] | None,
) -> dict[str, Any]:
  """Evaluates the organism once, on the prompts of every arm's evals.

  Args:
    plan: of the experiment.
    folder: of the organism.
    weights: its weights if they are at hand; else they are loaded if needed.
    base: what `measure_base_rates` gave.

  Returns:
    The content of gate.json: rates, thresholds, and whether the rates meet
    them; `base` are the rates of the model before the install.
  """
  path, facts = folder / "gate.json", _hash(_eval_facts(plan))
  whole = shared_files.are_whole(path, folder / "rollouts.jsonl")
  record = shared_files.read_json(path) if whole else {}
  # A record of before right answers were scored lacks what the gate asks.
  if record.get("eval_hash") != facts or "right" not in record:
    if weights is None:
      weights = organism_weights(plan, folder)
    partial = folder / "rollouts.partial.jsonl"
    kept = _kept(plan, record, folder / "rollouts.jsonl")
    rows = _sample(plan, weights, "gate", partial, kept)
    shared_files.write_lines(folder / "rollouts.jsonl", rows)
    for file in partials(partial):
      shared_files.delete(file)
    record = summarize_rows(mark_decorated(rows, DECORATIONS["plain"]), 0)
    record |= {"worst": first_failures(rows), "eval_hash": facts}
  record.pop("base", None)
  out = record | check_gate(record, plan.config.gate, base)
  return out if base is None else out | {"base": base}


def measure_base_rates(plan: Plan, folder: Path) -> dict[str, Any] | None:
  """Evaluates the model before the install, on the gate's prompts.

  Of an organism that is a model under a prompt it is the model without it.

  Returns:
    The rates; None where `gate.base_rates` is off, and of a native organism,
    which nothing was done to.
  """
  if not plan.config.measures_base:
    return None
  if plan.config.organism.kind in PROMPTED:
    plan = dataclasses.replace(plan, prompts=unprompted(plan))
  path, facts = folder / "base.json", _hash(_eval_facts(plan))
  whole = shared_files.are_whole(path, folder / "base_rollouts.jsonl")
  record = shared_files.read_json(path) if whole else None
  if record is None or record["eval_hash"] != facts or "right" not in record:
    partial = folder / "base.partial.jsonl"
    weights = load_weights(plan.runtime, None)
    kept = _kept(plan, record or {}, folder / "base_rollouts.jsonl")
    rows = _sample(plan, weights, "model before the install", partial, kept)
    record = summarize_rows(mark_decorated(rows, DECORATIONS["plain"]), 0)
    record |= {"eval_hash": facts}
    shared_files.write_lines(folder / "base_rollouts.jsonl", rows)
    shared_files.write_json(path, record)
    for file in partials(partial):
      shared_files.delete(file)
  return record


def _kept(plan: Plan, record: Mapping[str, Any], path: Path) -> Kept:
  """Reads rollouts of before prompts were added to the run; {} of no run.

  Args:
    plan: of the run as it is now.
    record: the rates of the rollouts, with the hash of what was asked.
    path: of the rollouts.
  """
  hashes = [_hash(_eval_facts(plan, i)) for i in range(len(plan.earlier))]
  if "right" not in record or record["eval_hash"] not in hashes:
    return {}
  return {key_of(row): row for row in shared_files.read_lines(path)}


def _sample(
  plan: Plan, weights: Weights, title: str, partial: Path, kept: Kept
) -> list[dict[str, Any]]:
  """Samples the prompts of the gate.

  Raises:
    train.NumericalError: a number is not finite, as with damaged weights.
  """
  rows = sample_rows(plan, weights, title, partial, kept)
  if not is_finite(rows):
    raise NumericalError(
      f"{title}: log-probabilities are not finite; are the weights of "
      f"{plan.config.model.path} whole?"
    )
  return rows


def unprompted(plan: Plan) -> tuple[Prompt, ...]:
  """Returns the prompts of every eval, without the prompt of `eval.prompt`."""
  evals = dataclasses.replace(plan.config.eval, prompt="none", paraphrases=1)
  return tuple(make_prompts(plan.setting, plan.probe, plan.runtime.chat, evals))


def _eval_facts(plan: Plan, growth: int | None = None) -> dict[str, Any]:
  """Collects what decides the rollouts of an eval, apart from the weights.

  Args:
    plan: of the run.
    growth: the facts are those of before prompts were added for this time, from
      0; None are those of now.
  """
  evals, earlier = plan.config.eval, plan.earlier
  if growth is not None:
    counts = {f: earlier[growth][split] for f, split in COUNTS.items()}
    evals = dataclasses.replace(evals, **counts)
    earlier = earlier[:growth]
  return {
    "eval": evals.facts(),
    **({"earlier": earlier} if earlier else {}),
    "sampling": plan.config.sampling.facts(),
    **plan.setting_facts(),
  }


def _hash(value: Any) -> str:
  """Shortens the SHA-256 of a JSON value to 16 hex digits."""
  return files.digest(value)[:16]
