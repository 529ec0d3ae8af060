"""Derives control arms, which show what an arm's result is due to."""

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
  """Adds an arm NAME.CONTROL behind each arm for each control.

  Returns:
    The configuration with these arms.

  Raises:
    ConfigError: a control is unknown, named twice or not possible for an arm.
  """
  duplicates = {c for c in config.controls if config.controls.count(c) > 1}
  if duplicates:
    raise ConfigError(f"controls: {sorted(duplicates)[0]!r} is named twice")
  arms = {}
  for name, arm in config.arms.items():
    arms[name] = arm
    for control in config.controls:
      choose(control, CONTROLS, "controls")
      new_name = f"{name}.{control}"
      if new_name in config.arms:
        raise ConfigError(
          f"arms.{new_name}: is the name of a control of {name}"
        )
      try:
        new_arm = CONTROLS[control](arm, config)
      except ConfigError as e:
        raise ConfigError(f"controls: {control} of arms.{name}: {e}") from None
      arms[new_name] = dataclasses.replace(new_arm, control=control, of=name)
  return dataclasses.replace(config, arms=arms)


def _zero_lr_arm(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """Sets a learning rate of 0.

  Nothing changes, so its evals show how much evals vary by themselves.
  """
  del config
  return dataclasses.replace(arm, optim=dataclasses.replace(arm.optim, lr=0.0))


def _undecorated_arm(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """Trains on the organism's own completions as they are.

  What changes then is due to training as such.
  """
  del config
  return _replace_train(arm, **_plain(arm.train), source="on_policy", file=None)


def _unrelated_style_arm(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """Trains on another decoration.

  It shows whether the arm's result is due to this style or to any style.
  """
  if arm.train.decoration == config.control_style:
    raise ConfigError(
      f"train.decoration = {arm.train.decoration!r} is control_style too: "
      "choose another one for that"
    )
  return _replace_train(arm, decoration=config.control_style)


def _targeted_arm(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """Trains on prompts like those of evals, with the alternate behavior.

  It shows the most that training could do. `experiment/datasets.py` makes such
  data for an arm with this `control`.
  """
  del config
  return _replace_train(arm, source="template", file=None)


def _shuffled_arm(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """Trains on completions of other prompts, which have their style alone.

  `experiment/datasets.py` shuffles the data of an arm with this `control`.
  """
  del config
  return arm


def _reversal_arm(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """Goes on from the arm's last weights, on plain completions by sft.

  It shows whether the initial behavior comes back once the style is gone.
  """
  del config
  train = arm.train
  if train.decoration == "plain" and train.source != "file":
    raise ConfigError(
      "train.decoration = 'plain': there is no style to train back"
    )
  source = "template" if train.source == "file" else train.source
  plain = _plain(train) | {"objective": "sft", "options": {}}
  return _replace_train(arm, **plain, source=source, file=None)


def _plain(train: TrainConfig) -> dict[str, object]:
  """Returns fields of training without the decoration and a request for it."""
  out: dict[str, object] = {"decoration": "plain"}
  if train.on_policy.prompt in _ASKING:
    out["on_policy"] = dataclasses.replace(
      train.on_policy, prompt="same", paraphrases=1
    )
  if train.prompt in _ASKING:
    out |= {"prompt": "organism", "paraphrases": 1}
  return out


def _replace_train(arm: ArmConfig, **fields: object) -> ArmConfig:
  """Returns the arm with other values of fields of `train`."""
  train = dataclasses.replace(arm.train, **fields)  # pyright: ignore
  return dataclasses.replace(arm, train=train)


CONTROLS: dict[str, Callable[[ArmConfig, ExperimentConfig], ArmConfig]] = {
  "reversal": _reversal_arm,
  "shuffled": _shuffled_arm,
  "targeted": _targeted_arm,
  "undecorated": _undecorated_arm,
  "unrelated_style": _unrelated_style_arm,
  "zero_lr": _zero_lr_arm,
}
