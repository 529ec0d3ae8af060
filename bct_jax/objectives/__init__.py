"""Lists training objectives, by the name used in `train.objective`.

To add one, write a file with a function of the type `types.Objective`. If it
has options, write a dataclass `WithOptions` whose fields they are. Then put it
into OBJECTIVES. The contract test runs on it by itself.
"""

from collections.abc import Mapping
from typing import Any

from bct_jax.config import (
  ArmConfig,
  ConfigError,
  OrganismConfig,
  choose,
  suggest,
)
from bct_jax.config.options import find_wrong_option
from bct_jax.objectives.base import WithOptions
from bct_jax.objectives.dpo import Dpo, Ipo
from bct_jax.objectives.kl_to_ref import KlToRef
from bct_jax.objectives.policy_gradient import PolicyGradient
from bct_jax.objectives.self_distill import SelfDistill
from bct_jax.objectives.sft import sft
from bct_jax.objectives.unlikelihood import Unlikelihood
from bct_jax.types import Objective

# The parts of a completion that can be trained: an option of every objective.
PARTS = ("answer", "thought", "both")
OBJECTIVES: dict[str, Objective | type[WithOptions]] = {
  "dpo": Dpo,
  "ipo": Ipo,
  "kl_to_ref": KlToRef,
  "policy_gradient": PolicyGradient,
  "self_distill": SelfDistill,
  "sft": sft,
  "unlikelihood": Unlikelihood,
}


def make_objective(
  name: str, options: Mapping[str, Any], where: str = "train"
) -> Objective:
  """Makes an objective from its name in `OBJECTIVES` and its options.

  Equal names and options give equal objectives.

  Args:
    name: the key in OBJECTIVES.
    options: values of its fields; the others have their defaults. Besides,
      `on` is for the data, see `trained_part`.
    where: the group of config fields that an error names.

  Raises:
    ConfigError: the name or an option is unknown, or the objective rejects a
      value.
  """
  choose(name, OBJECTIVES, f"{where}.objective")
  choose(trained_part(options), PARTS, f"{where}.options.on")
  options = {k: v for k, v in options.items() if k != "on"}
  objective = OBJECTIVES[name]
  options_of = objective if isinstance(objective, type) else None
  option = find_wrong_option(options_of, options)
  if option is not None and not option.needed_type:
    raise ConfigError(
      f"{where}.options.{option.name}: unknown"
      f"{suggest(option.name, option.valid)}; those of {name} are "
      f"{sorted(option.valid)}"
    )
  if option is not None:
    raise ConfigError(
      f"{where}.options.{option.name}: {option.needed_type} is "
      f"needed, found {option.value!r}"
    )
  if options_of is None:
    return objective  # pyright: ignore
  try:
    return options_of(**options)
  except ValueError as e:
    raise ConfigError(f"{where}.options.{e}") from None


def trained_part(options: Mapping[str, Any]) -> Any:
  """Returns which part of completions an objective trains, one of PARTS.

  All its terms are on that part, divergences included. The loss weights of the
  data say so, hence the objective itself does not know it.

  Args:
    options: train.options; the part is the answer unless `on` is there.
  """
  return options.get("on", "answer")


def objective_of(arm: ArmConfig | OrganismConfig) -> Objective:
  """Returns the objective of a run; see make_objective."""
  return make_objective(arm.train.objective, arm.train.options)


def data_needs(objective: Objective) -> WithOptions:
  """Returns what an objective needs of the data: nothing for a function."""
  return objective if isinstance(objective, WithOptions) else WithOptions()


def policy_of(arm: ArmConfig | OrganismConfig) -> PolicyGradient:
  """Returns the objective of a run that trains on its own samples.

  See experiment/rl.py.
  """
  objective = objective_of(arm)
  assert isinstance(objective, PolicyGradient)  # the only such objective
  return objective


__all__ = [
  "OBJECTIVES",
  "PolicyGradient",
  "data_needs",
  "make_objective",
  "objective_of",
  "policy_of",
  "sft",
  "trained_part",
]
