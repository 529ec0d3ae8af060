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


@dataclasses.dataclass(frozen=True)
class Expected:
  """Says how a control should be read, if the experiment is sound.

  Attributes:
    why: what another reading would mean.
    behavior, integrity, progress: the word of a reading (evals/reading.py) that
      is expected; "" where the control asks and nothing is expected.
  """

  why: str
  behavior: str = ""
  integrity: str = ""
  progress: str = ""


@dataclasses.dataclass(frozen=True)
class Control:
  """Describes a control.

  Attributes:
    make_arm: makes its arm from the arm that it is a control of.
    expected: how it should be read.
  """

  make_arm: Callable[[ArmConfig, ExperimentConfig], ArmConfig]
  expected: Expected


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
        new_arm = CONTROLS[control].make_arm(arm, config)
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

  What changes then is due to training as such. Of an arm of sft it is what
  `_plain_sft_arm` makes.
  """
  del config
  return _replace_train(arm, **_plain(arm.train), source="on_policy", file=None)


def _plain_sft_arm(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """Trains by sft on the organism's own completions, at the arm's own rate.

  It is there for arms of every objective, rewards too.
  """
  sft = {"objective": "sft", "options": {}}
  arm = _replace_train(arm, **sft) if arm.train.objective != "sft" else arm
  return _undecorated_arm(arm, config)


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

  Every second prompt is one on which both behaviors agree, so that the model
  is shown both sides. It shows the most that training could do.
  `experiment/datasets.py` makes such data for an arm with this `control`.
  """
  del config
  return _replace_train(arm, source="template", file=None, mix=())


def _shuffled_arm(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """Trains on completions of other prompts, which have their style alone.

  `experiment/datasets.py` shuffles the data of an arm with this `control`.
  """
  del config
  return arm


def _reversal_arm(arm: ArmConfig, config: ExperimentConfig) -> ArmConfig:
  """Goes on from the arm's last weights, on plain completions by sft.

  It shows whether the initial behavior comes back once the style is gone. Its
  rate and its updates are those of `config.reversal`: at the arm's own high
  rate, a return would soon be trained away again.
  """
  train, own = arm.train, config.reversal
  if train.decoration == "plain" and train.source != "file":
    raise ConfigError(
      "train.decoration = 'plain': there is no style to train back"
    )
  source = "template" if train.source == "file" else train.source
  plain = _plain(train) | {"objective": "sft", "options": {}}
  steps = train.steps if own.steps is None else own.steps
  lr = arm.optim.lr if own.lr is None else own.lr
  arm = dataclasses.replace(arm, optim=dataclasses.replace(arm.optim, lr=lr))
  return _replace_train(
    arm, **plain, source=source, file=None, mix=(), steps=steps
  )


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


CONTROLS: dict[str, Control] = {
  "plain_sft": Control(
    _plain_sft_arm,
    Expected(
      "its own answers contradict nothing: a loss here is due to training as "
      "such, not to the style or the objective of the arm",
      behavior="kept",
      integrity="intact",
    ),
  ),
  "reversal": Control(
    _reversal_arm,
    Expected(
      "plain answers at a low rate should harm nothing; whether the behavior "
      "returns is what it asks",
      integrity="intact",
    ),
  ),
  "shuffled": Control(
    _shuffled_arm,
    Expected(
      "answers to other prompts are wrong: a model that stays intact was "
      "hardly trained, or right answers are not measured",
      integrity="damaged",
      progress="not reached",
    ),
  ),
  "targeted": Control(
    _targeted_arm,
    Expected(
      "it is trained on the alternate behavior itself: if that is not learned, "
      "a behavior that the arm keeps says nothing",
      behavior="replaced",
      integrity="intact",
      progress="reached",
    ),
  ),
  "undecorated": Control(
    _undecorated_arm,
    Expected(
      "its own answers contradict nothing: a loss here is due to training as "
      "such, not to the style",
      behavior="kept",
      integrity="intact",
    ),
  ),
  "unrelated_style": Control(
    _unrelated_style_arm,
    Expected(
      "it compares two styles where training got equally far; what becomes of "
      "the behavior is what it asks",
      integrity="intact",
      progress="reached",
    ),
  ),
  "zero_lr": Control(
    _zero_lr_arm,
    Expected(
      "no weight changes: anything else is a fault of the evals",
      behavior="kept",
      integrity="intact",
      progress="not reached",
    ),
  ),
}
