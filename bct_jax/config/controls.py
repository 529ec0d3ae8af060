"""Further arms, made from each arm, that say what its result is due to."""

import dataclasses
from collections.abc import Callable

from bct_jax.config.fields import choose
from bct_jax.config.types import (
  ArmConfig,
  ConfigError,
  ExperimentConfig,
  TrainConfig,
)

# Kinds of train.prompt and on_policy.prompt that ask for the decoration.
_ASKING = ("inoculation", "recontextualised")


def with_controls(config: ExperimentConfig) -> ExperimentConfig:
  """The config with an arm NAME.CONTROL behind each arm for each control.

  Raises:
    ConfigError: a control is unknown, named twice or not possible for an arm.
  """
  twice = {c for c in config.controls if config.controls.count(c) > 1}
  if twice:
    raise ConfigError(f"controls: {sorted(twice)[0]!r} is named twice")
  arms = {}
  for name, arm in config.arms.items():
    arms[name] = arm
    for control in config.controls:
      choose(control, CONTROLS, "controls")
      made = f"{name}.{control}"
      if made in config.arms:
        raise ConfigError(f"arms.{made}: is the name of a control of {name}")
      try:
        changed = CONTROLS[control](arm, config)
      except ConfigError as e:
        raise ConfigError(f"controls: {control} of arms.{name}: {e}") from None
      arms[made] = dataclasses.replace(changed, control=control, of=name)
  return dataclasses.replace(config, arms=arms)


def _zero_lr(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """Nothing may change: what evals show is what they vary by."""
  del config
  return dataclasses.replace(arm, optim=dataclasses.replace(arm.optim, lr=0.0))


def _undecorated(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """On the organism's own completions, as they are: training as such."""
  del config
  return _changed(arm, **_plain(arm.train), source="on_policy", file=None)


def _unrelated_style(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """On another decoration: does it matter which one?"""
  if arm.train.decoration == config.control_style:
    raise ConfigError(
      f"train.decoration = {arm.train.decoration!r} is control_style too: "
      "choose another one for that"
    )
  return _changed(arm, decoration=config.control_style)


def _targeted(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """On prompts like those of evals, with the alternate behavior: the most
  that training could do."""
  del config
  return _changed(arm, source="template", file=None)


def _shuffled(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """On completions of other prompts: their style without their sense."""
  del config
  return arm


def _reversal(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """From the arm's last weights, on plain completions by sft: does the initial
  behavior come back with the style gone?"""
  del config
  train = arm.train
  if train.decoration == "plain" and train.source != "file":
    raise ConfigError(
      "train.decoration = 'plain': there is no style to train back"
    )
  source = "template" if train.source == "file" else train.source
  plain = _plain(train) | {"objective": "sft", "options": {}}
  return _changed(arm, **plain, source=source, file=None)


def _plain(train: TrainConfig) -> dict[str, object]:
  """Fields of training without the decoration and a request for it."""
  out: dict[str, object] = {"decoration": "plain"}
  if train.on_policy.prompt in _ASKING:
    out["on_policy"] = dataclasses.replace(
      train.on_policy, prompt="same", paraphrases=1
    )
  if train.prompt in _ASKING:
    out |= {"prompt": "organism", "paraphrases": 1}
  return out


def _changed(arm: ArmConfig, **fields: object) -> ArmConfig:
  train = dataclasses.replace(arm.train, **fields)  # pyright: ignore
  return dataclasses.replace(arm, train=train)


CONTROLS: dict[str, Callable[[ArmConfig, ExperimentConfig], ArmConfig]] = {
  "reversal": _reversal,
  "shuffled": _shuffled,
  "targeted": _targeted,
  "undecorated": _undecorated,
  "unrelated_style": _unrelated_style,
  "zero_lr": _zero_lr,
}
