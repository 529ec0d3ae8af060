"""Turns mappings into dataclasses, every field checked against its type."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from bct_jax.config.types import ConfigError


def suggest(
  name: str,
  valid: typing.Iterable[str],
  hint: str = " (did you mean {!r}?)",
) -> str:
  """Suggests the valid name that is nearest to a wrong one.

  Args:
    name: the wrong name.
    valid: the names that would be right.
    hint: the wording, with one field for the nearest name.

  Returns:
    The hint with the nearest name filled in, or "" if no name is near.
  """
  names = {option.lower(): option for option in valid}
  nearest = difflib.get_close_matches(name.lower(), list(names), 1)
  return hint.format(names[nearest[0]]) if nearest else ""


def choose(name: str, options: typing.Iterable[str], what: str) -> str:
  """Returns `name` if it is one of the options.

  Args:
    name: the value of a field.
    options: all values that the field can have.
    what: the field, for the message.

  Raises:
    ConfigError: it is none; the message has the nearest and all options.
  """
  options = sorted(options)
  if name not in options:
    raise ConfigError(
      f"{what} = {name!r}: not one of {options}{suggest(name, options)}"
    )
  return name


def merge(base: Mapping, override: Mapping, where: str) -> dict:
  """Lays the fields of an arm over those that all arms share.

  Options belong to one objective: an arm with another objective starts without
  any.

  Args:
    base: nested mappings of the shared fields.
    override: those of the arm that differ.
    where: the arm's name, for messages.

  Raises:
    ConfigError: the arm has a field that the shared ones do not have.
  """
  out = dict(base)
  if override.get("objective", base.get("objective")) != base.get("objective"):
    out["options"] = {}  # those of another objective
  for key, value in override.items():
    if key == "options":  # which there are is the objective's to say
      _require_mapping(value, f"{where}.{key}")
      out[key] = {**out[key], **value}
      continue
    if key not in base:
      raise ConfigError(f"{where}.{key}: unknown{suggest(key, base)}")
    both_groups = isinstance(value, Mapping) and isinstance(base[key], Mapping)
    out[key] = (
      merge(base[key], value, f"{where}.{key}") if both_groups else value
    )
  return out


def build(cls: Any, values: Any, where: str) -> Any:
  """Builds a dataclass from a mapping and checks every field's type.

  Args:
    cls: the dataclass.
    values: its fields by name; nested dataclasses are nested mappings.
    where: the name of this group of fields, for messages.

  Raises:
    ConfigError: a field is unknown, missing or of the wrong type.
  """
  _require_mapping(values, where)
  hints = typing.get_type_hints(cls)
  for key in values:
    if key not in hints:
      raise ConfigError(f"{where}.{key}: unknown{suggest(key, hints)}")
  default = {f.name for f in dataclasses.fields(cls) if not _is_required(f)}
  missing = [k for k in hints if k not in values and k not in default]
  if missing:
    raise ConfigError(f"{where}.{missing[0]}: missing")
  return cls(
    **{k: _convert(hints[k], v, f"{where}.{k}") for k, v in values.items()}
  )


def _is_required(field: dataclasses.Field) -> bool:
  """Returns whether a field has no default."""
  missing = dataclasses.MISSING
  return field.default is missing and field.default_factory is missing


def _require_mapping(values: Any, where: str) -> None:
  """Raises ConfigError unless the values are a mapping."""
  if not isinstance(values, Mapping):
    raise ConfigError(f"{where}: a group of fields is needed, found {values!r}")


def _convert(hint: Any, value: Any, where: str) -> Any:
  """Converts a value to the type of its field, or raises ConfigError.

  Lists become tuples and whole numbers floats, where the field's type says so.
  Nothing else is converted.
  """
  if dataclasses.is_dataclass(hint):
    return build(hint, value, where)
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    if value is None:
      return None
    # An empty system message is one; an empty path would be the current folder.
    if value == "" and not where.endswith(".system_prompt"):
      raise ConfigError(f"{where}: must not be empty; None is for no value")
    hint = next(a for a in args if a is not type(None))
    return _convert(hint, value, where)
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise ConfigError(f"{where}: a tuple is needed, found {value!r}")
    if args[-1] is Ellipsis:
      args = (args[0],) * len(value)
    if len(value) != len(args):
      raise ConfigError(f"{where}: {len(args)} values are needed: {value!r}")
    return tuple(map(_convert, args, value, [where] * len(args)))
  if origin is not None:  # Mapping[str, ...]
    _require_mapping(value, where)
    return dict(value)
  if hint is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if type(value) is not hint:
    raise ConfigError(
      f"{where}: {hint.__name__} is needed, found "
      f"{type(value).__name__} {value!r}"
    )
  if hint is float and not math.isfinite(value):
    raise ConfigError(f"{where}: must be finite, found {value!r}")
  return value


def set_field(raw: dict[str, Any], field: str, value: Any) -> None:
  """Sets a field of a config's values, which are changed.

  Fields of an objective's or setting's `options` and those of an arm need not
  be there: `from_dict` says whether there are such.

  Args:
    raw: nested values of a config.
    field: its dotted name, as "arms.low.optim.lr".
    value: the new value.

  Raises:
    ConfigError: there is no such field, or no such arm.
  """
  *groups, last = field.split(".")
  group, path = raw, []
  for name in groups:
    path.append(name)
    if path[0] == "arms" and len(path) > 2:
      group.setdefault(name, {})
    if not isinstance(group.get(name), dict):
      raise ConfigError(f"{field}: unknown{suggest(name, group)}")
    group = group[name]
  may_be_new = groups[-1:] == ["options"] or (path[:1] == ["arms"] and path[1:])
  if last not in group and not may_be_new:
    raise ConfigError(f"{field}: unknown{suggest(last, group)}")
  group[last] = value


def flatten_config(
  values: Mapping[str, Any], prefix: str = ""
) -> dict[str, Any]:
  """Flattens nested groups of fields; joins their names by dots."""
  out = {}
  for k, v in values.items():
    if isinstance(v, Mapping) and v:
      out.update(flatten_config(v, f"{prefix}{k}."))
    else:
      out[prefix + k] = v
  return out


def field_differences(
  then: Mapping[str, Any], now: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
  """Lists the fields that two configs differ in, with the values of both."""
  a, b = flatten_config(then), flatten_config(now)
  return [
    (k, a.get(k, "absent"), b.get(k, "absent"))
    for k in sorted({*a, *b})
    if a.get(k, "absent") != b.get(k, "absent")
  ]


def require_valid(
  group: Any, where: str, *checks: tuple[str, bool, str]
) -> None:
  """Rejects the first value of a group of fields that cannot be.

  Args:
    group: has the fields.
    where: its name, for messages.
    checks: field, whether its value can be, and what it must be.

  Raises:
    ConfigError: a value cannot be; the message names the field.
  """
  for field, is_valid, requirement in checks:
    if not is_valid:
      value = getattr(group, field)
      raise ConfigError(f"{where}.{field} = {value!r}: must be {requirement}")
