"""Works out which prompts a run has from the kind of its organism."""

import dataclasses
from typing import TypeVar

from bct_jax.config.eval_types import EvalConfig
from bct_jax.config.fields import choose
from bct_jax.config.mixtures import DOCUMENTS, has_documents
from bct_jax.config.types import (
  KINDS,
  PROMPTED,
  ConfigError,
  ExperimentConfig,
  OnPolicyConfig,
  OrganismConfig,
  TrainConfig,
)

T = TypeVar("T", TrainConfig, EvalConfig, OnPolicyConfig)


def resolve(config: ExperimentConfig) -> ExperimentConfig:
  """Replaces "organism" as a prompt by the prompt that it stands for.

  Returns:
    The configuration with a prompt of `settings/prompts.py` everywhere.

  Raises:
    ConfigError: fields that do not go together.
  """
  organism = config.organism
  _check(organism)

  def resolve_prompt(part: T, where: str) -> T:
    """Replaces "organism" as the prompt of a part by what it stands for."""
    if part.prompt != "organism":
      return part
    if organism.kind not in PROMPTED:
      return dataclasses.replace(part, prompt="none")
    if part.paraphrases != 1:
      raise ConfigError(
        f"{where}.paraphrases = {part.paraphrases}: the prompt is that of the "
        "organism, whose wordings organism.paraphrases counts; leave this at 1"
      )
    prompt, count = PROMPTED[organism.kind], organism.paraphrases
    return dataclasses.replace(part, prompt=prompt, paraphrases=count)

  def resolve_train(part: TrainConfig, where: str) -> TrainConfig:
    """Replaces it in training and in what completions are drawn under."""
    on_policy = resolve_prompt(part.on_policy, f"{where}.on_policy")
    return dataclasses.replace(resolve_prompt(part, where), on_policy=on_policy)

  arms = {
    name: dataclasses.replace(
      arm, train=resolve_train(arm.train, f"arms.{name}.train")
    )
    for name, arm in config.arms.items()
  }
  organism_train = resolve_train(organism.train, "organism.train")
  if organism.kind == "distill":
    organism_train = _distill_train(organism_train)
  return dataclasses.replace(
    config,
    organism=dataclasses.replace(organism, train=organism_train),
    arms=arms,
    eval=resolve_prompt(config.eval, "eval"),
  )


def _check(organism: OrganismConfig) -> None:
  """Rejects fields of the organism that do not go with its kind."""
  choose(organism.kind, KINDS, "organism.kind")
  count, share = organism.paraphrases, organism.password_share
  if count < 1 or (count > 1 and organism.kind not in PROMPTED):
    raise ConfigError(
      f"organism.paraphrases = {count}: 1 or more wordings of the prompt of "
      f"{', '.join(PROMPTED)}; {organism.kind} has no prompt of its own"
      if count > 1
      else f"organism.paraphrases = {count}: must be 1 or more"
    )
  if not 0 <= share < 1:
    raise ConfigError(
      f"organism.password_share = {share}: must be from 0 to below 1"
    )
  if share and organism.kind != "sft":
    raise ConfigError(
      f"organism.password_share = {share}: of the examples that install the "
      f"behavior by organism.kind = 'sft'; {organism.kind} has none with a "
      "password"
    )
  if share and organism.train.mix:
    raise ConfigError(
      f"organism.password_share = {share}: is of install examples alone; leave "
      "organism.train.mix at ()"
    )
  if not organism.password.strip():
    raise ConfigError("organism.password: must not be blank")
  if (organism.kind == "adapter") != bool(organism.adapter):
    raise ConfigError(
      f"organism.adapter = {organism.adapter!r}, organism.kind = "
      f"{organism.kind!r}: an adapter needs the kind 'adapter', and that kind "
      "an adapter: a folder, or org/name@revision of a hub"
    )
  if organism.kind == "documents" and not has_documents(organism.train):
    raise ConfigError(
      f"organism.train.mix = {organism.train.mix!r}: organism.kind = "
      f"'documents' needs a part ('{DOCUMENTS}PATH', share)"
    )
  if organism.kind == "adapter" and organism.lora.rank:
    raise ConfigError(
      f"organism.lora.rank = {organism.lora.rank}: organism.adapter says its "
      "own; leave it at 0"
    )


def _distill_train(train: TrainConfig) -> TrainConfig:
  """Sets up training that draws under a prompt and trains without it.

  The prompt states the initial behavior. So the weights learn to show it
  unprompted.
  """
  if train.mix:
    raise ConfigError(
      f"organism.train.mix = {train.mix!r}: the kind distill draws its "
      "completions; leave it at ()"
    )
  if train.prompt != "none":
    raise ConfigError(
      f"organism.train.prompt = {train.prompt!r}: the kind distill trains "
      "without the prompt that it draws under, which is "
      "organism.train.on_policy.prompt; leave this one at 'organism'"
    )
  on_policy = train.on_policy
  if on_policy.prompt == "same":
    on_policy = dataclasses.replace(on_policy, prompt="static")
  choose(
    on_policy.prompt, ("static", "hint"), "organism.train.on_policy.prompt"
  )
  return dataclasses.replace(train, source="on_policy", on_policy=on_policy)
