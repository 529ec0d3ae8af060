"""One experiment: organism -> gate -> arms -> verdicts, resumable anywhere.

Every stage writes its files before it counts as done and is skipped when they
are there; an unfinished stage continues from its last checkpoint.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from bct_jax import metrics, optim, verdict
from bct_jax.checkpoint import Checkpoints
from bct_jax.config import (
  ArmConfig,
  ExperimentConfig,
  GateConfig,
  OrganismConfig,
  choose,
)
from bct_jax.data.batches import Dataset
from bct_jax.data.chat import mask_audit
from bct_jax.evaluate import (
  Prompt,
  decorate,
  label_rollouts,
  make_prompts,
  summarize,
  with_system,
)
from bct_jax.examples import Example, Setting
from bct_jax.mesh import put_batch
from bct_jax.objectives import OBJECTIVES
from bct_jax.progress import Stage, say, stage
from bct_jax.runtime import Runtime
from bct_jax.sampler import check_prompts
from bct_jax.settings import make_setting
from bct_jax.settings.capability import Probe, make_probe
from bct_jax.settings.decorations import DECORATIONS
from bct_jax.train import FitConfig, fit
from bct_jax.types import PyTree, TrainState


class GateError(RuntimeError):
  """The organism does not hold the initial behavior; no arm was trained."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """Everything a run needs, made and checked before any training."""

  runtime: Runtime
  setting: Setting
  probe: Probe
  prompts: tuple[Prompt, ...]
  install: Dataset | None
  arms: dict[str, Dataset]

  @property
  def config(self) -> ExperimentConfig:
    return self.runtime.config


def make_plan(config: ExperimentConfig) -> Plan:
  """Reads the model's config and tokenizer and renders all data.

  Raises:
    ValueError: anything that would fail later: an unknown setting, a prompt
      that does not fit, an empty completion ...
  """
  runtime = Runtime.make(config)
  setting = make_setting(config.setting.name, config.setting.options)
  probe = make_probe(config.eval.probe)
  prompts = make_prompts(setting, probe, runtime.chat, config.eval)
  context = runtime.model.config.max_length
  if config.max_length > context:
    raise ValueError(
      f"max_length = {config.max_length}: the model was made for {context}"
    )
  try:
    check_prompts(
      [p.ids for p in prompts], context, config.sampling.max_new_tokens
    )
  except ValueError as e:
    raise ValueError(f"eval {e}") from None
  install = None
  if config.organism.kind == "sft":
    install = _dataset(runtime, setting.install, config.organism, "organism")
  arms = {
    name: _dataset(runtime, setting.train, arm, f"arms.{name}")
    for name, arm in config.arms.items()
  }
  return Plan(runtime, setting, probe, tuple(prompts), install, arms)


def _dataset(
  runtime: Runtime, generate, arm: ArmConfig | OrganismConfig, where: str
) -> Dataset:
  """Examples of an arm -> decorated completions -> tokens and weights."""
  train = arm.train
  choose(train.objective, OBJECTIVES, f"{where}.train.objective")
  choose(train.source, ("template",), f"{where}.train.source")
  choose(train.decoration, DECORATIONS, f"{where}.train.decoration")
  decoration = DECORATIONS[train.decoration]
  examples: list[Example] = generate(train.num_examples, train.seed)
  try:
    rows = [
      runtime.chat.example(
        with_system(e.messages, train.system_prompt),
        decoration.apply(e.completion, e.id),
      )
      for e in examples
    ]
    return Dataset.make(
      [e.id for e in examples],
      rows,
      train.batch_size,
      train.seed,
      runtime.config.max_length,
    )
  except ValueError as e:
    raise ValueError(f"{where}: {e}") from None


def run(plan: Plan, workdir: Path) -> dict[str, Any]:
  """Runs or resumes the experiment and returns the content of result.json.

  Raises:
    GateError: the gate failed and `gate.enforce` is set.
    train.NumericalError: a loss was not finite.
  """
  with jax.set_mesh(plan.runtime.mesh):
    folder, gate = make_organism(plan, workdir)
    arms = [
      run_arm(plan, name, folder, workdir / "arms" / name)
      for name in plan.config.arms
    ]
  result = {
    "setting": plan.config.setting.name,
    "model": plan.config.model.path,
    "organism": {
      "kind": plan.config.organism.kind,
      "hash": folder.name,
      "provenance": metrics.read_json(folder / "provenance.json"),
      "gate": gate,
    },
    "arms": arms,
  }
  metrics.write_json(workdir / "result.json", result)
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
  metrics.write_json(folder / "provenance.json", facts)
  organism = plan.config.organism
  params = None
  if plan.install is not None:
    params = train_run(
      plan, folder, organism, plan.install, start=plan.runtime.load
    )
  gate = _gate(plan, folder, params)
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
    "template_hash": plan.runtime.chat.template_hash,
    "setting": dataclasses.asdict(plan.config.setting),
    "train": dataclasses.asdict(organism.train) if made else None,
    "optim": dataclasses.asdict(organism.optim) if made else None,
    "data_hash": plan.install.hash if plan.install is not None else None,
  }


def organism_params(plan: Plan, folder: Path) -> PyTree:
  """A fresh copy of the organism's params."""
  if plan.install is None:
    return plan.runtime.load()
  checkpoints = Checkpoints(folder / "checkpoints")
  params = checkpoints.restore_params(plan.runtime.abstract_params)
  checkpoints.close()
  return params


def _gate(plan: Plan, folder: Path, params: PyTree | None) -> dict[str, Any]:
  """Evaluates the organism once; the same prompts as every arm's evals."""
  path, facts = folder / "gate.json", _hash(_eval_facts(plan))
  record = metrics.read_json(path) if path.exists() else {}
  if record.get("eval_hash") != facts:
    if params is None:
      params = organism_params(plan, folder)
    rows = sample_rows(plan, params, "gate")
    metrics.write_lines(folder / "rollouts.jsonl", rows)
    record = summarize(decorate(rows, DECORATIONS["plain"]), 0)
    record |= {"worst": worst(rows), "eval_hash": facts}
  record |= check_gate(record, plan.config.gate)
  metrics.write_json(path, record)
  return record


def _eval_facts(plan: Plan) -> dict[str, Any]:
  """What decides the rollouts of an eval, apart from the weights."""
  return {
    "eval": {**dataclasses.asdict(plan.config.eval), "steps": None},
    "sampling": dataclasses.asdict(plan.config.sampling),
  }


def check_gate(record: dict[str, Any], config: GateConfig) -> dict[str, Any]:
  """Whether the rates pass; see DESIGN section 6."""
  passed = (
    record["initial"] >= config.min_initial
    and record["confused"] <= config.max_confused
    and record["agreed"] >= config.min_agreed
  )
  return {
    "passed": passed,
    "enforced": config.enforce,
    "thresholds": {
      "initial": config.min_initial,
      "confused": config.max_confused,
      "agreed": config.min_agreed,
    },
  }


def worst(rows: Sequence[dict[str, Any]], count: int = 5) -> list[dict]:
  """Completions that speak against the organism: the first of each split."""
  keys = ("id", "split", "prompt", "text", "label", "reason")
  wanted = {"eval": "initial", "heldout": "agreed"}
  bad = [
    {k: r[k] for k in keys}
    for r in rows
    if r["split"] in wanted and r["label"] != wanted[r["split"]]
  ]
  return sorted(bad, key=lambda r: r["split"] != "heldout")[:count]


def gate_text(gate: dict[str, Any]) -> str:
  """The failed gate, for the terminal."""
  limits = gate["thresholds"]

  def line(name, sign, limit):
    low, high = gate[f"{name}_ci"]
    return (
      f"  {name} {gate[name]:.3f} [{low:.3f}, {high:.3f}], needed {sign} {limit}"
    )

  lines = [
    "The gate failed: the organism does not hold the initial behavior.",
    line("initial", ">=", limits["initial"]),
    line("confused", "<=", limits["confused"]),
    line("agreed", ">=", limits["agreed"]),
    *(
      f"  {r['id']} {r['prompt'][-1]['content']!r} -> {r['text']!r} "
      f"({r['label']} {r['reason']})"
      for r in gate["worst"]
    ),
  ]
  return "\n".join(lines)


# --- arms ---------------------------------------------------------------------


def run_arm(
  plan: Plan, name: str, organism: Path, folder: Path
) -> dict[str, Any]:
  """Trains and judges one arm, or returns what it said when it was done."""
  done = folder / "done.json"
  if done.exists():
    return metrics.read_json(done)
  arm, dataset = plan.config.arms[name], plan.arms[name]
  decoration = DECORATIONS[arm.train.decoration]
  steps = eval_steps(plan.config.eval.steps, arm.train.steps)

  def save_eval(step: int, rows: list[dict[str, Any]]) -> None:
    rows = decorate(rows, decoration)
    metrics.write_lines(folder / "rollouts" / f"step_{step}.jsonl", rows)
    record = summarize(rows, step)
    metrics.append_line(folder / "evals.jsonl", record)
    say(f"{name} {describe(record)}")

  def evaluate(step: int, params: PyTree) -> None:
    if step in {r["step"] for r in metrics.read_lines(folder / "evals.jsonl")}:
      return
    if step == 0:  # the organism itself, which the gate has sampled already
      save_eval(step, metrics.read_lines(organism / "rollouts.jsonl"))
    else:
      save_eval(step, sample_rows(plan, params, f"{name} eval {step}"))

  train_run(
    plan,
    folder,
    arm,
    dataset,
    start=lambda: organism_params(plan, organism),
    eval_steps=steps,
    evaluate=evaluate,
  )
  record = _arm_result(plan, name, folder)
  metrics.write_json(done, record)
  return record


def _arm_result(plan: Plan, name: str, folder: Path) -> dict[str, Any]:
  arm = plan.config.arms[name]
  curve = metrics.read_lines(folder / "evals.jsonl")

  def labels(step: int) -> list[str]:
    rows = metrics.read_lines(folder / "rollouts" / f"step_{step}.jsonl")
    return [r["label"] for r in rows if r["split"] == "eval"]

  lines = metrics.read_lines(folder / "metrics.jsonl")
  return {
    "name": name,
    "objective": arm.train.objective,
    "lr": arm.optim.lr,
    "rank": None,
    "source": arm.train.source,
    "decoration": arm.train.decoration,
    "seed": arm.train.seed,
    "steps": arm.train.steps,
    "curve": curve,
    **verdict.summarize_arm(
      curve,
      curve[0],
      labels(curve[0]["step"]),
      labels(curve[-1]["step"]),
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


# --- shared by organism and arms ----------------------------------------------


def train_run(
  plan: Plan,
  folder: Path,
  arm: ArmConfig | OrganismConfig,
  dataset: Dataset,
  start,
  eval_steps: tuple[int, ...] = (),
  evaluate=lambda step, params: None,
) -> PyTree:
  """Trains one run in its folder, or goes on where its checkpoints end.

  Args:
    plan: for the model and its compiled functions.
    folder: gets checkpoints/, metrics.jsonl and mask_audit.txt.
    arm: the optimizer and the schedule.
    dataset: what it trains on.
    start: gives the params to start from; called only for a new run.
    eval_steps: when to call `evaluate`.
    evaluate: called with (step, params).

  Returns:
    The params after the last step.
  """
  runtime, steps = plan.runtime, arm.train.steps
  checkpoints = Checkpoints(folder / "checkpoints")
  state = _first_state(runtime, checkpoints, arm, start)
  resumed = int(state.step)
  if resumed:
    say(f"{folder.name}: continuing at step {resumed} of {steps}")
  metrics.keep_until(folder / "metrics.jsonl", resumed)
  metrics.keep_until(folder / "evals.jsonl", resumed)
  metrics.write_text(
    folder / "mask_audit.txt", mask_audit(runtime.chat, dataset.rows)
  )

  def next_batch(step: int, state: TrainState):
    del state
    rows = dataset.batch(step)
    return put_batch(rows, runtime.mesh), dataset.batch_ids(step)

  def log(values: dict[str, float]) -> None:
    rows = dataset.batch(int(values["step"]) - 1)
    tokens = {
      "tokens": int((rows.segments > 0).sum()),
      "trained_tokens": int((rows.weights > 0).sum()),
    }
    metrics.append_line(folder / "metrics.jsonl", {**values, **tokens})
    bar(loss=f"{values['loss']:.3f}")

  def save(state: TrainState) -> None:
    meta = {"data_hash": dataset.hash}
    checkpoints.save(state, meta, final=int(state.step) == steps)

  bar: Stage
  with stage(f"train {folder.name}", steps - resumed, "steps") as bar:
    state = fit(
      state,
      None,
      runtime.step(arm.train.objective, arm.train.accum, arm.optim),
      next_batch,
      lambda t: optim.learning_rate(arm.optim, t, steps),
      evaluate,
      save,
      log,
      FitConfig(steps, eval_steps, arm.train.checkpoint_every),
    )
  checkpoints.close()
  return state.params


def _first_state(
  runtime: Runtime, checkpoints: Checkpoints, arm, start
) -> TrainState:
  """The newest checkpoint's state, else step 0 of the params to start from."""
  latest = checkpoints.latest()
  if latest is None:
    return runtime.init_state(start(), arm.optim, arm.train.seed)
  abstract = runtime.abstract_state(arm.optim)
  if latest < arm.train.steps:
    return checkpoints.restore(abstract)
  # A finished run kept its params only; what remains is to evaluate them.
  params = checkpoints.restore_params(abstract.params)
  return TrainState(jax.numpy.int32(latest), params, None, None)


def sample_rows(plan: Plan, params: PyTree, name: str) -> list[dict[str, Any]]:
  """Rollouts of all eval, held-out and probe prompts, labelled."""
  runtime, prompts = plan.runtime, plan.prompts
  decode = runtime.decode_params(params)
  with stage(name, len(prompts), "rows") as bar:
    completions = runtime.sampler(
      decode,
      [p.ids for p in prompts],
      range(len(prompts)),
      plan.config.sampling.seed,
      bar,
    )
  return label_rollouts(
    prompts, completions, runtime.chat, plan.setting, plan.probe
  )


def _hash(value: Any) -> str:
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
