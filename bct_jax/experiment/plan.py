"""The plan of a run: model, prompts and data, checked before any training."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from bct_jax.config import ConfigError, ExperimentConfig
from bct_jax.data.batches import Dataset
from bct_jax.evals.evaluate import Prompt, label_rollouts, make_prompts
from bct_jax.examples import Setting
from bct_jax.experiment.datasets import make_dataset
from bct_jax.infra import memory
from bct_jax.infra.progress import stage
from bct_jax.interop.lm_eval_tasks import Tasks
from bct_jax.models.lora import Weights
from bct_jax.runtime.programs import Runtime
from bct_jax.sample.resume import sample_to_end
from bct_jax.sample.sampler import Completion, check_prompts
from bct_jax.settings import make_setting
from bct_jax.settings.probes.capability import Probe, make_probe

# Eval rollouts whose log-probabilities the trainer's forward pass gives too.
CHECKED = 8


@dataclasses.dataclass(frozen=True)
class Plan:
  """Everything a run needs, made and checked before any training."""

  runtime: Runtime
  setting: Setting
  probe: Probe
  prompts: tuple[Prompt, ...]
  install: Dataset | None
  arms: dict[str, Dataset]
  tasks: Tasks | None = None  # of lm-eval, if evals have some
  fall_back: bool = False  # whether damaged checkpoints are set aside

  @property
  def config(self) -> ExperimentConfig:
    return self.runtime.config


def make_plan(
  config: ExperimentConfig, mesh: Mesh | None = None, fetch: bool = True
) -> Plan:
  """Reads the model's config and tokenizer and renders all data.

  Args:
    config: of the experiment.
    mesh: None is that of the config. An abstract one makes a plan to look at,
      which cannot be run.
    fetch: False takes from a hub only what was downloaded before.

  Raises:
    ValueError: anything that would fail later: an unknown setting, a prompt
      that does not fit, an empty completion ...
  """
  runtime = Runtime.make(config, mesh, fetch)
  _ = runtime.abstract_params  # a mesh that does not fit is no fault of an arm
  setting = make_setting(config.setting.name, config.setting.options)
  probe = make_probe(config.eval.probe)
  prompts = make_prompts(
    setting, probe, runtime.chat, config.eval, style_of(config)
  )
  context = runtime.model.config.max_length
  check_length(config, context)
  try:
    check_prompts(
      [p.ids for p in prompts], context, config.sampling.max_new_tokens
    )
  except ValueError as e:
    raise ValueError(f"eval {e}") from None
  install = None
  if config.organism.trained:
    install = make_dataset(runtime, setting, config.organism, "organism")
  arms = {
    name: make_dataset(runtime, setting, arm, f"arms.{name}")
    for name, arm in config.arms.items()
  }
  tasks = Tasks(runtime) if config.eval.tasks else None
  return Plan(runtime, setting, probe, tuple(prompts), install, arms, tasks)


def style_of(config: ExperimentConfig) -> str:
  """The one style that an eval prompt can ask for, that of all arms.

  Controls are asked for the style of the arms, whatever they are trained on.

  Raises:
    ConfigError: it does, and the arms have several.
  """
  arms = [arm for arm in config.arms.values() if not arm.control]
  styles = sorted({arm.train.decoration for arm in arms})
  if config.eval.prompt == "inoculation" and len(styles) != 1:
    raise ConfigError(
      "eval.prompt = 'inoculation' asks for the style of the arms, which must "
      f"have one: train.decoration is {styles}"
    )
  return styles[0] if styles else "plain"


def check_length(config: ExperimentConfig, context: int) -> None:
  """Raises ValueError for rows longer than the model was made for."""
  if config.max_length > context:
    raise ValueError(
      f"max_length = {config.max_length}: the model was made for {context}"
    )


def sample_rows(
  plan: Plan, weights: Weights, name: str, partial: Path | None = None
) -> list[dict[str, Any]]:
  """Rollouts of all eval, held-out and probe prompts, labelled.

  The first rows, CHECKED at most, also have `logprob_difference`: the largest
  absolute difference, in nats, of a token's log-probability between the
  sampler and the forward pass of training.

  With `partial`, what was sampled before a kill is read from there; the caller
  deletes it when the rows are saved.
  """
  return sample_arms(plan, [weights], name, partial)[0]


def sample_arms(
  plan: Plan,
  arms: Sequence[Weights],
  name: str,
  partial: Path | None = None,
) -> list[list[dict[str, Any]]]:
  """As `sample_rows`, for each of several arms over the same params.

  Their rows are sampled in one batch, with the row ids that each has alone.
  """
  runtime, count = plan.runtime, len(plan.prompts)
  sampling = plan.config.sampling
  every = range(len(arms))
  memory.give_back()  # what training has left
  with stage(name, count * len(arms), "rows") as bar:
    completions = sample_to_end(
      runtime.sampler,
      runtime.decode_params(*arms),
      [p.ids for _ in every for p in plan.prompts],
      sampling.seed,
      partial,
      dataclasses.asdict(sampling),
      bar,
      runtime.chat.find_stop(sampling.stop),
      row_ids=[i for _ in every for i in range(count)],
      arms=[arm for arm in every for _ in range(count)] if arms[1:] else None,
    )
  rows = [
    _label(plan, weights, completions[arm * count : (arm + 1) * count])
    for arm, weights in enumerate(arms)
  ]
  memory.give_back()
  return rows


def _label(
  plan: Plan, weights: Weights, completions: Sequence[Completion]
) -> list[dict[str, Any]]:
  runtime, prompts = plan.runtime, plan.prompts
  rows = label_rollouts(
    prompts,
    completions,
    runtime.chat,
    plan.setting,
    plan.probe,
    plan.config.sampling.stop,
  )
  checked = [p.ids for p in prompts if p.split == "eval"][:CHECKED]
  drawn = completions[: len(checked)]
  scored = runtime.scorer(weights, checked, [c.tokens for c in drawn])
  for row, a, b in zip(rows[: len(checked)], drawn, scored, strict=True):
    pairs = zip(a.logprobs, b.logprobs, strict=True)
    row["logprob_difference"] = max(abs(x - y) for x, y in pairs)
  if plan.config.eval.references:
    _score_references(plan, weights, rows)
  return rows


def references(
  plan: Plan, name: str
) -> tuple[list[tuple[int, ...]], list[list[int]]]:
  """Ids of the eval prompts and of a behavior's completions, with their end.

  `name` is initial or alternate.
  """
  chat = plan.runtime.chat
  evals = [p for p in plan.prompts if p.split == "eval"]
  texts = [getattr(p.example, name) for p in evals]
  ended = [[*chat.encode(text), chat.end_of_turn] for text in texts]
  return [p.ids for p in evals], ended


def _score_references(
  plan: Plan, weights: Weights, rows: list[dict[str, Any]]
) -> None:
  """Adds to the rows of eval prompts how likely each behavior's answer is.

  `logprob_initial` and `logprob_alternate`: log p of the reference completion
  with the end of its turn, in nats, whatever was sampled.
  """
  evals = [i for i, p in enumerate(plan.prompts) if p.split == "eval"]
  for name in ("initial", "alternate"):
    scored = plan.runtime.scorer(weights, *references(plan, name))
    for i, found in zip(evals, scored, strict=True):
      rows[i][f"logprob_{name}"] = sum(found.logprobs)
