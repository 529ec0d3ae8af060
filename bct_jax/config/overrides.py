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


def take_fields(
  argv: Sequence[str], flag: str = "config"
) -> tuple[list[str], dict[str, str]]:
  """Takes out of a command line what ml_collections would read wrong.

  Args:
    argv: the command line.
    flag: the one that names the config file.

  Returns:
    The other words; and field, as "arms.low.train.seed", -> its text. These are
    the fields of arms, and optional fields that are set to None.

  Raises:
    ConfigError: a field has no value, or one that looks like None and is text.
  """
  rest, fields = [], {}
  words = iter(argv)
  for word in words:
    name, equals, value = word.partition("=")
    dashes, _, field = name.partition(f"{flag}.")
    of_arm = field.startswith("arms.")
    if dashes not in ("-", "--") or not (of_arm or is_optional(field)):
      rest.append(word)
      continue
    text = value if equals else next(words, None)
    if text is None:
      raise ConfigError(f"{name}: needs a value")
    if is_optional(field) and text != "None":
      if text.lower() in ("none", "null"):
        raise ConfigError(f"{name}={text}: write None for no value")
    if of_arm or text == "None":
      fields[field] = text
    else:
      rest.append(f"{name}={text}")
      fields.pop(field, None)  # the last one holds
  return rest, fields


def set_fields(
  raw: dict[str, Any], fields: Mapping[str, str]
) -> dict[str, Any]:
  """Sets fields of a config's values, which are changed.

  Args:
    raw: nested values of a config.
    fields: field -> its text, see `take_fields`.

  Returns:
    Field -> its value.

  Raises:
    ConfigError: there is no such arm, or no such field.
  """
  values = {}
  for field, text in fields.items():
    path = field.split(".")
    if path[0] == "arms":
      _, name, *path = path
      if name not in raw.get("arms", {}) or not path:
        arms = ", ".join(raw.get("arms", {})) or "none"
        raise ConfigError(f"{field}: no field of an arm; the arms are: {arms}")
    shared: Any = raw
    for group in path:
      shared = shared.get(group) if isinstance(shared, Mapping) else None
    # What has no value to compare with is text, but for options, which have no
    # type here.
    unknown = shared is None and path[-2:-1] != ["options"]
    if text == "None" and is_optional(field):
      values[field] = None
    elif unknown or isinstance(shared, str):
      values[field] = text
    else:
      values[field] = _parse(text)
    set_field(raw, field, values[field])
  return values


def _parse(text: str) -> Any:
  """Reads a text as a Python value if it is one; `from_dict` checks it."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    lower = text.lower()
    return lower == "true" if lower in ("true", "false") else text


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
