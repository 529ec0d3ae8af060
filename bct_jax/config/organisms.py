"""What the kind of an organism says about the prompts of a whole run."""

import dataclasses
from typing import TypeVar

from bct_jax.config.fields import choose
from bct_jax.config.types import (
  KINDS,
  PROMPTED,
  ConfigError,
  EvalConfig,
  ExperimentConfig,
  OnPolicyConfig,
  OrganismConfig,
  TrainConfig,
)

T = TypeVar("T", TrainConfig, EvalConfig, OnPolicyConfig)


def resolve(config: ExperimentConfig) -> ExperimentConfig:
  """The config with "organism" as a prompt replaced by what it stands for.

  Raises:
    ConfigError: fields that do not go together.
  """
  organism = config.organism
  _check(organism)

  def said(part: T, where: str) -> T:
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

  def train(part: TrainConfig, where: str) -> TrainConfig:
    draw = said(part.on_policy, f"{where}.on_policy")
    return dataclasses.replace(said(part, where), on_policy=draw)

  arms = {
    name: dataclasses.replace(arm, train=train(arm.train, f"arms.{name}.train"))
    for name, arm in config.arms.items()
  }
  made = train(organism.train, "organism.train")
  if organism.kind == "distill":
    made = _distilled(made)
  return dataclasses.replace(
    config,
    organism=dataclasses.replace(organism, train=made),
    arms=arms,
    eval=said(config.eval, "eval"),
  )


def _check(organism: OrganismConfig) -> None:
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
  if not organism.password.strip():
    raise ConfigError("organism.password: must not be blank")


def _distilled(train: TrainConfig) -> TrainConfig:
  """Draws under a prompt that states the behavior, and trains without it."""
  if train.prompt != "none":
    raise ConfigError(
      f"organism.train.prompt = {train.prompt!r}: the kind distill trains "
      "without the prompt that it draws under, which is "
      "organism.train.on_policy.prompt; leave this one at 'organism'"
    )
  draw = train.on_policy
  if draw.prompt == "same":
    draw = dataclasses.replace(draw, prompt="static")
  choose(draw.prompt, ("static", "hint"), "organism.train.on_policy.prompt")
  return dataclasses.replace(train, source="on_policy", on_policy=draw)
