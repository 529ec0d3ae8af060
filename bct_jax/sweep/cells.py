"""Makes the cells of a sweep from overrides of a base config.

A list of overrides is a list of mappings {dotted field: value}. Combinators
such as `product` take such lists and return one:

  product(values("optim.lr", 1e-5, 1e-4), values("train.seed", 0, 1))

has four cells. A cell is one arm, named by what it overrides. No jax here.
"""

import copy
import dataclasses
import itertools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from bct_jax.config import (
  ArmConfig,
  ConfigError,
  ExperimentConfig,
  choose,
  from_dict,
  set_field,
)

Overrides = Mapping[str, Any]

# What is drawn at random in an experiment -> the field of its seed.
SEEDS = {
  "organism": "organism.train.seed",  # its examples, their order, its adapter
  "arm": "train.seed",  # the arm's examples and their order
  "adapter": "train.adapter_seed",  # the start of the arm's adapter
  "eval": "eval.seed",  # the eval, held-out and probe prompts
}

# Not a field: what to call the fields of a cell in its name, see `named`.
_LABELS = "labels"

# Fields of an arm that change the inputs of its program but not the program.
# Arms that are equal in all other fields can be trained together.
VALUES = frozenset(
  "optim.lr optim.schedule optim.warmup_steps optim.decay_steps "
  "train.steps train.num_examples train.source train.file train.file_split "
  "train.on_policy train.decoration train.seed train.adapter_seed "
  "train.system_prompt train.prompt train.paraphrases train.normalizer "
  "train.checkpoint_every".split()
)


@dataclasses.dataclass(frozen=True)
class Cell:
  """Describes one arm of a sweep.

  Attributes:
    name: of the arm, and of its folder.
    raw: a whole config as nested mappings, with this arm alone.
    config: the same, checked.
  """

  name: str
  raw: Mapping[str, Any]
  config: ExperimentConfig


def values(field: str, *options: Any) -> list[Overrides]:
  """Lists overrides of one field, with each of the values in turn."""
  return [{field: option} for option in options]


def named(label: str, **fields: Any) -> list[Overrides]:
  """Makes an override of several fields that is one word in a cell's name.

  Args:
    label: the word.
    fields: values by dotted names, with __ for each dot.
  """
  dotted = {field.replace("__", "."): value for field, value in fields.items()}
  return [{_LABELS: {label: tuple(dotted)}, **dotted}]


def cross_seeds(**seeds: int | Sequence[int]) -> list[Overrides]:
  """Crosses seeds, each of which moves one thing that is drawn at random.

  Args:
    seeds: by the names of SEEDS, how many (from 0) or which ones. What is not
      named keeps its seed: `arm` moves the start of an adapter too, as long as
      `adapter` does not set it.

  Raises:
    ConfigError: an unknown name, or no seed.
  """
  parts = []
  for name, chosen in seeds.items():
    field = SEEDS[choose(name, SEEDS, "cross_seeds")]
    options = range(chosen) if isinstance(chosen, int) else chosen
    if not options:
      raise ConfigError(f"cross_seeds: {name} = {chosen!r} has no seed")
    parts.append(
      [{_LABELS: {f"{name}{i}": (field,)}, field: i} for i in options]
    )
  return product(*parts)


def product(*parts: Sequence[Overrides]) -> list[Overrides]:
  """Joins each choice of one per part; the last part changes fastest."""
  return [_join(chosen) for chosen in itertools.product(*parts)]


def zipped(*parts: Sequence[Overrides]) -> list[Overrides]:
  """Joins the first of each part, the second of each part, and so on.

  Raises:
    ConfigError: the parts are of unequal length.
  """
  if len({len(part) for part in parts}) > 1:
    raise ConfigError(
      f"zipped: lengths {[len(p) for p in parts]} must be equal"
    )
  return [_join(chosen) for chosen in zip(*parts, strict=True)]


def chain(*parts: Sequence[Overrides]) -> list[Overrides]:
  """Lists one part after another."""
  return [overrides for part in parts for overrides in part]


def make_cells(
  base: Mapping[str, Any], overrides: Sequence[Overrides]
) -> list[Cell]:
  """Checks the configs of all cells.

  Args:
    base: values of a config without arms.
    overrides: of each cell, by dotted names such as "optim.lr".

  Raises:
    ConfigError: a field of a cell is wrong, or two cells have one name; the
      message names the cell and the field.
  """
  if base.get("arms"):
    raise ConfigError(
      f"arms = {sorted(base['arms'])}: the cells are a sweep's arms; leave the "
      "arms of its base config empty"
    )
  if not overrides:
    raise ConfigError("get_cells gave no cell")
  cells = {}
  for chosen in overrides:
    name = cell_name(chosen)
    if name in cells:
      raise ConfigError(f"cell {name}: two cells have this name")
    raw = copy.deepcopy(dict(base))
    try:
      for field in _overridden(chosen):
        set_field(raw, field, chosen[field])
      raw["arms"] = {name: {}}
      cells[name] = Cell(name, raw, from_dict(raw))
    except ConfigError as e:
      raise ConfigError(f"cell {name}: {e}") from None
  return list(cells.values())


def cell_name(overrides: Overrides) -> str:
  """Names a cell by its overrides, such as dpo-lr_0.0001-seed_1.

  First come the words for several fields (`named`). Another field is shown by
  its last part, or by all parts if two fields end alike.
  """
  labels: Mapping[str, Sequence[str]] = overrides.get(_LABELS, {})
  labelled = {field for fields in labels.values() for field in fields}
  rest = [field for field in _overridden(overrides) if field not in labelled]
  lasts = [field.split(".")[-1] for field in rest]
  parts = list(labels)
  for field, last in zip(rest, lasts, strict=True):
    value = overrides[field]
    label = last if lasts.count(last) == 1 else field
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    parts.append(f"{label}_{shown}")
  text = "-".join(parts) or "base"
  return "".join(c if c.isalnum() or c in "._-" else "_" for c in text)


def group_by_organism(cells: Sequence[Cell]) -> list[list[Cell]]:
  """Groups cells that differ in their arm only, in order of the first."""
  groups: list[list[Cell]] = []
  for cell in cells:
    alone = dataclasses.replace(cell.config, arms={})
    for group in groups:
      if alone == dataclasses.replace(group[0].config, arms={}):
        group.append(cell)
        break
    else:
      groups.append([cell])
  return groups


def split_groups(
  cells: Sequence[Cell], most: int, alone: Collection[str] = ()
) -> list[list[Cell]]:
  """Groups cells of one organism that one program can train.

  The groups depend on all cells, not on which are done, so that the same
  command makes the same groups again.

  Args:
    cells: of one organism.
    most: cells of a group.
    alone: names of cells that share a group with no other.

  Returns:
    The groups, in order of their first cells.
  """
  groups: list[list[Cell]] = []
  for cell in cells:
    for group in groups:
      apart = alone and {cell.name, group[0].name} & {*alone}
      if (
        len(group) < most
        and not apart
        and not static_differences(group[0], cell)
      ):
        group.append(cell)
        break
    else:
      groups.append([cell])
  return groups


def static_differences(a: Cell, b: Cell) -> list[str]:
  """Lists fields for which no program can train both arms; see VALUES."""
  first, second = (_fields(x.config.arms[x.name]) for x in (a, b))
  return [k for k in first if k not in VALUES and first[k] != second[k]]


def _fields(arm: ArmConfig) -> dict[str, Any]:
  """Flattens the groups of an arm: {"optim.lr": 1e-4, ...}."""
  return {
    f"{group}.{field}": value
    for group, fields in dataclasses.asdict(arm).items()
    if isinstance(fields, dict)
    for field, value in fields.items()
  }


def share(cells: Sequence[Cell], part: str) -> list[Cell]:
  """Takes part i of n of the cells.

  The cells are put in order of their organisms and cut into n parts whose sizes
  differ by one at most. With more parts than cells some are empty.

  Args:
    cells: of the sweep.
    part: "i/n", with i from 1.

  Raises:
    ConfigError: `part` is not of that form.
  """
  i, slash, n = part.partition("/")
  if not (slash and i.isdecimal() and n.isdecimal()) or not (
    1 <= int(i) <= int(n)
  ):
    raise ConfigError(f"--cells={part}: i/n with 1 <= i <= n is needed")
  ordered = [cell for group in group_by_organism(cells) for cell in group]
  first, last = ((int(i) - k) * len(ordered) // int(n) for k in (1, 0))
  return ordered[first:last]


def _overridden(overrides: Overrides) -> list[str]:
  """Lists the fields of overrides."""
  return [field for field in overrides if field != _LABELS]


def _join(parts: Sequence[Overrides]) -> Overrides:
  """Joins overrides of different fields.

  Raises:
    ConfigError: a field is in two of them.
  """
  out: dict[str, Any] = {}
  labels: dict[str, Any] = {}
  for part in parts:
    if twice := out.keys() & set(_overridden(part)):
      raise ConfigError(f"{sorted(twice)[0]}: set twice in one cell")
    labels |= part.get(_LABELS, {})
    out.update(part)
  return {**out, _LABELS: labels} if labels else out
