"""Decides which cells of a sweep are trained together, and how."""

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
  """Groups cells of an organism that are trained at the same time.

  Args:
    group: cells of one organism.
    together: the most cells of a group.
  """
  alone = [
    c.name for c in group if _trains_on_own_samples(c) or c.config.controls
  ]
  return split_groups(group, together, alone)


def _trains_on_own_samples(cell: Cell) -> bool:
  """Tells whether a cell's objective draws its own completions."""
  objective = objective_of(cell.config.arms[cell.name])
  return data_needs(objective).trains_on_own_samples


def can_share_program(
  part: Sequence[Cell], vmap: bool | None, experts: bool = False
) -> bool:
  """Tells whether one program trains all cells of a part at once.

  Such a program reads the frozen weights once for all adapters, see
  train/together.py. On a CPU this saves nothing, so there a program for one
  cell runs for each in turn. The same holds for cells that train all params,
  since each has its own.

  Args:
    part: cells that are trained together.
    vmap: what the command asks for; None chooses by the device.
    experts: whether the model is a mixture, whose ragged products JAX does not
      run for several adapters at once.

  Raises:
    ConfigError: `vmap` is set for cells of a mixture, or for cells that train
      all params. Of these rounding would add up to more than two runs of the
      same arm may differ by.
  """
  adapts = part[0].config.arms[part[0].name].lora.rank > 0
  if vmap and len(part) > 1 and not adapts:
    raise ConfigError(
      f"--vmap: cell {part[0].name} trains all params (lora.rank = 0), of "
      "which each arm has its own; one program is for adapters over the same"
    )
  if vmap and len(part) > 1 and experts:
    raise ConfigError(
      f"--vmap: the model of cell {part[0].name} has experts, which one "
      "program does not run for several adapters; use --novmap"
    )
  if vmap is None:
    vmap = adapts and not experts and jax.default_backend() != "cpu"
  return vmap and len(part) > 1


def describe_groups(
  of_group: Sequence[Sequence[Cell]], forms: Sequence[bool]
) -> list[str]:
  """Lists which cells are trained together, how, and why not with the rest.

  Args:
    of_group: the parts of the cells of one organism.
    forms: for each part, whether one program trains it.
  """
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
  """Makes one plan for cells of one organism, with the arms of all of them."""
  from bct_jax.experiment.plan import make_plan

  arms = {name: arm for c in group for name, arm in c.config.arms.items()}
  return make_plan(dataclasses.replace(group[0].config, arms=arms))


def make_room(last: Cell | None, cell: Cell) -> None:
  """Frees compiled programs if the next cell cannot use them.

  Data of another setting has other shapes.

  Args:
    last: the cell before; None if there is none.
    cell: the next cell.
  """
  from bct_jax.runtime.programs import forget_programs

  def shapes(config: ExperimentConfig) -> tuple[object, ...]:
    """Returns what the shapes of a cell's arrays follow from."""
    return config.setting, config.model, config.mesh

  if last is not None and shapes(last.config) != shapes(cell.config):
    forget_programs()
