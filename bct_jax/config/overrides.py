"""Reads fields of the configuration that the command line sets.

Most are read by ml_collections. Two kinds are not: fields of an arm's groups,
which a config file names only where they differ from what all arms share, and
None, which ml_collections takes for a text.
"""

import ast
import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from bct_jax.config.fields import set_field
from bct_jax.config.types import ArmConfig, ConfigError, ExperimentConfig


def take_arm_fields(
  argv: Sequence[str], flag: str = "config"
) -> tuple[list[str], dict[str, str]]:
  """Takes the fields of arms out of a command line.

  Args:
    argv: the command line.
    flag: the one that names the config file.

  Returns:
    The other words; and field, as "arms.low.train.seed", -> its text.

  Raises:
    ConfigError: a field has no value.
  """
  rest, fields = [], {}
  words = iter(argv)
  for word in words:
    name, equals, value = word.partition("=")
    dashes, _, field = name.partition(f"{flag}.")
    if dashes not in ("-", "--") or not field.startswith("arms."):
      rest.append(word)
      continue
    text = value if equals else next(words, None)
    if text is None:
      raise ConfigError(f"{name}: needs a value")
    fields[field] = text
  return rest, fields


def set_arm_fields(
  raw: dict[str, Any], fields: Mapping[str, str]
) -> dict[str, Any]:
  """Sets fields of arms in a config's values, which are changed.

  Args:
    raw: nested values of a config.
    fields: field -> its text, see `take_arm_fields`.

  Returns:
    Field -> its value.

  Raises:
    ConfigError: there is no such arm, or no such field.
  """
  values = {}
  for field, text in fields.items():
    _, name, *path = field.split(".")
    if name not in raw.get("arms", {}) or not path:
      arms = ", ".join(raw.get("arms", {})) or "none"
      raise ConfigError(f"{field}: no field of an arm; the arms are: {arms}")
    shared: Any = raw
    for group in path:
      shared = shared.get(group) if isinstance(shared, Mapping) else None
    none = text == "None" and is_optional(field)
    values[field] = None if none else _parse(text, shared)
    set_field(raw, field, values[field])
  return values


def _parse(text: str, like: Any) -> Any:
  """Reads a text as a value like that of another arm; `check` types it."""
  if like is None or isinstance(like, str):
    return text
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    lower = text.lower()
    return lower == "true" if lower in ("true", "false") else text


def clear_none(raw: dict[str, Any], overrides: Mapping[str, Any]) -> None:
  """Sets optional fields to None that the command line set to "None".

  Args:
    raw: nested values of a config, which are changed.
    overrides: field -> the value that the command line gave it.
  """
  for field, value in overrides.items():
    if value == "None" and is_optional(field):
      set_field(raw, field, None)


def is_optional(field: str) -> bool:
  """Tells whether a field of a config may be None.

  Args:
    field: its dotted name, as "eval.system_prompt"; groups that arms share and
      groups of an arm are known by their names.
  """
  path = field.split(".")
  cls: Any = ExperimentConfig
  if path[0] == "arms":
    cls, path = ArmConfig, path[2:]
  elif path[0] in typing.get_type_hints(ArmConfig):
    cls = ArmConfig
  for name in path:
    if not dataclasses.is_dataclass(cls):
      return False
    cls = typing.get_type_hints(cls).get(name)
  union = typing.get_origin(cls) in (typing.Union, types.UnionType)
  return union and type(None) in typing.get_args(cls)
