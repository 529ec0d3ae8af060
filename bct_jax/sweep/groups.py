"""Which cells of a sweep are trained together, and how."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax

from bct_jax.config import ConfigError, ExperimentConfig
from bct_jax.objectives import data_needs, objective_of
from bct_jax.sweep.cells import Cell, split_groups, static_differences


def groups_trained_together(
  group: Sequence[Cell], together: int
) -> list[list[Cell]]:
  """Cells of an organism that are trained at a time."""
  alone = [
    c.name for c in group if _trains_on_own_samples(c) or c.config.controls
  ]
  return split_groups(group, together, alone)


def _trains_on_own_samples(cell: Cell) -> bool:
  objective = objective_of(cell.config.arms[cell.name])
  return data_needs(objective).trains_on_own_samples


def can_share_program(part: Sequence[Cell], vmap: bool | None) -> bool:
  """Whether one program trains all cells of a part, see train/together.py.

  It reads what adapters are over once for all of them, which on a CPU saves
  nothing: there the program of one runs for each in turn, as it does where all
  params are trained, of which each arm has its own.

  Raises:
    ConfigError: it is asked for where all params are trained: rounding adds up
      to more than two runs of the same arm may differ by.
  """
  adapts = part[0].config.arms[part[0].name].lora.rank > 0
  if vmap and len(part) > 1 and not adapts:
    raise ConfigError(
      f"--vmap: cell {part[0].name} trains all params (lora.rank = 0), of "
      "which each arm has its own; one program is for adapters over the same"
    )
  if vmap is None:
    vmap = adapts and jax.default_backend() != "cpu"
  return vmap and len(part) > 1


def describe_groups(
  of_group: Sequence[Sequence[Cell]], forms: Sequence[bool]
) -> list[str]:
  """What is trained together, how, and why not with the rest."""
  lines = []
  for part, vmapped in zip(of_group, forms, strict=True):
    form = "in one program" if vmapped else "by the program of one, in turn"
    names = ", ".join(c.name for c in part)
    line = f"trained alone: {names}"
    if len(part) > 1:
      line = f"trained together, {form}: {names}"
    if apart := static_differences(of_group[0][0], part[0]):
      line += f" (not with {of_group[0][0].name}: {', '.join(apart)} differ)"
    if _trains_on_own_samples(part[0]):
      objective = part[0].config.arms[part[0].name].train.objective
      line += f" ({objective} draws from the weights of every step)"
    if part[0].config.controls:
      line += " (its controls follow it)"
    lines.append(line)
  return lines


def plan_of(group: Sequence[Cell]) -> Any:
  """The plan of cells of one organism, whose arms are those of all of them."""
  from bct_jax.experiment.plan import make_plan

  arms = {name: arm for c in group for name, arm in c.config.arms.items()}
  return make_plan(dataclasses.replace(group[0].config, arms=arms))


def make_room(last: Cell | None, cell: Cell) -> None:
  """Frees the programs of an organism that another one has no use for: data of
  another setting has other shapes."""
  from bct_jax.runtime.programs import forget_programs

  def shapes(config: ExperimentConfig) -> tuple[object, ...]:
    return config.setting, config.model, config.mesh

  if last is not None and shapes(last.config) != shapes(cell.config):
    forget_programs()
