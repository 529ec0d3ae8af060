"""Checks fields of a training run against its setting and its objective."""

from bct_jax.config import (
  ArmConfig,
  ConfigError,
  OrganismConfig,
  TrainConfig,
  choose,
)
from bct_jax.config.mixtures import has_documents
from bct_jax.examples import Setting
from bct_jax.objectives import trained_part
from bct_jax.objectives.base import WithOptions
from bct_jax.settings.decorations import DECORATIONS


def check_run(
  setting: Setting,
  train: TrainConfig,
  needs: WithOptions,
  from_template: bool,
  where: str,
) -> None:
  """Checks fields of `train` that depend on the setting or the objective.

  Args:
    setting: of the experiment.
    train: of the run.
    needs: of its objective.
    from_template: whether only the setting's own completions will do.
    where: the run's name in errors.

  Raises:
    ValueError: a field is impossible; the message names it.
  """
  choose(train.decoration, DECORATIONS, f"{where}.train.decoration")
  if train.decoration in setting.incompatible:
    fine = sorted(set(DECORATIONS) - setting.incompatible)
    raise ValueError(
      f"{where}.train.decoration = {train.decoration!r} would change what "
      f"{setting.name} scores; choose one of {', '.join(fine)}"
    )
  if from_template and train.source != "template":
    raise ConfigError(
      f"{where}.train.source = {train.source!r}: the setting's own completions "
      "install the behavior; there is no organism yet to draw from, and a file "
      "does not say which behavior it shows"
    )
  _check_part(train, where)
  if has_documents(train) and needs.extra_rows:
    raise ConfigError(
      f"{where}.train.mix = {train.mix!r}: {train.objective} compares "
      f"completions ({', '.join(needs.extra_rows)}), and a document has none"
    )
  if train.prompt == "recontextualised" and train.source != "on_policy":
    raise ConfigError(
      f"{where}.train.prompt = 'recontextualised' is of completions drawn "
      f"under another prompt: set train.source to 'on_policy', or choose "
      "'inoculation'"
    )
  if "teacher" in needs.extra_rows.values():
    _check_teacher(train, where)
  if needs.counts_examples and train.normalizer != "token":
    raise ConfigError(
      f"{where}.train.normalizer = {train.normalizer!r}: {train.objective} has "
      "one term for each example whatever its length; leave it at 'token'"
    )


def _check_teacher(train: TrainConfig, where: str) -> None:
  """Checks that the teacher's completions and prompt are of the organism."""
  if train.source != "on_policy":
    raise ConfigError(
      f"{where}.train.source = {train.source!r}: {train.objective} learns "
      "from the organism's own completions, which is 'on_policy'"
    )
  if train.on_policy.prompt in ("same", train.prompt) and (
    train.prompt != "recontextualised"
  ):
    raise ConfigError(
      f"{where}.train.on_policy.prompt = {train.on_policy.prompt!r}: teacher "
      "and student would see the same prompt, so that there is nothing to "
      "learn; choose one that train.prompt is not, such as 'inoculation'"
    )


def _check_part(train: TrainConfig, where: str) -> None:
  """Checks that the part of completions that is trained is there."""
  part = trained_part(train.options)
  if part != "answer" and train.reasoning == "none":
    raise ConfigError(
      f"{where}.train.options.on = {part!r}: there is no thought to train, "
      f"since train.reasoning = 'none'; choose 'empty', 'own' or 'given'"
    )


def check_own_samples(
  arm: ArmConfig | OrganismConfig, group: int, where: str
) -> None:
  """Checks fields of an arm that draws its own completions, see rl.py.

  Args:
    arm: the arm.
    group: samples of a prompt in an update.
    where: its name in errors.

  Raises:
    ConfigError: a field is impossible; the message names it.
  """
  train = arm.train
  if isinstance(arm, OrganismConfig):
    raise ConfigError(
      f"{where}.train.objective = {train.objective!r}: an organism learns its "
      "behavior from examples, only arms learn from rewards"
    )
  if arm.control not in ("", "zero_lr"):
    raise ConfigError(
      f"controls: {arm.control} changes the completions that an arm is given, "
      f"and {where}, an arm of {train.objective}, draws its own; only zero_lr "
      "and reversal apply to it"
    )
  if train.source != "on_policy":
    raise ConfigError(
      f"{where}.train.source = {train.source!r}: {train.objective} draws its "
      "completions while it trains, which is 'on_policy'"
    )
  if train.on_policy.prompt != "same" or train.prompt == "recontextualised":
    raise ConfigError(
      f"{where}.train.on_policy.prompt = {train.on_policy.prompt!r}, "
      f"train.prompt = {train.prompt!r}: rollouts are trained on under the "
      "prompt that they were drawn under, so that they are on-policy; leave "
      "the first at 'same' and choose another one for the second"
    )
  if train.reasoning not in ("none", "own"):
    raise ConfigError(
      f"{where}.train.reasoning = {train.reasoning!r}: {train.objective} draws "
      "its completions, whose thoughts are its 'own', or there are 'none'"
    )
  if train.normalizer != "token":
    raise ConfigError(
      f"{where}.train.normalizer = {train.normalizer!r}: {train.objective} has "
      "its own, train.options.normalizer; leave this one at 'token'"
    )
  if train.batch_size % group:
    raise ConfigError(
      f"{where}.train.options.group_size = {group}: must divide "
      f"train.batch_size = {train.batch_size}"
    )
