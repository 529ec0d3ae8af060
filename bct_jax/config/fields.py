"""Mappings made into dataclasses, every field checked against its type."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from bct_jax.config.types import ConfigError


def suggest(name: str, valid: typing.Iterable[str]) -> str:
  """ " (did you mean 'x'?)", or nothing when no name is near."""
  near = difflib.get_close_matches(name, list(valid), 1)
  return f" (did you mean {near[0]!r}?)" if near else ""


def choose(name: str, options: typing.Iterable[str], what: str) -> str:
  """Returns `name` if it is one of the options.

  Raises:
    ConfigError: naming what was asked for, the nearest and all options.
  """
  options = sorted(options)
  if name not in options:
    raise ConfigError(
      f"{what} = {name!r}: not one of {options}{suggest(name, options)}"
    )
  return name


def merge(base: Mapping, override: Mapping, where: str) -> dict:
  out = dict(base)
  if override.get("objective", base.get("objective")) != base.get("objective"):
    out["options"] = {}  # those of another objective
  for key, value in override.items():
    if key == "options":  # which there are is the objective's to say
      _group(value, f"{where}.{key}")
      out[key] = {**out[key], **value}
      continue
    if key not in base:
      raise ConfigError(f"{where}.{key}: unknown{suggest(key, base)}")
    nested = isinstance(value, Mapping) and isinstance(base[key], Mapping)
    out[key] = merge(base[key], value, f"{where}.{key}") if nested else value
  return out


def build(cls: Any, values: Any, where: str) -> Any:
  """A dataclass from a mapping, with every field checked against its type."""
  _group(values, where)
  hints = typing.get_type_hints(cls)
  for key in values:
    if key not in hints:
      raise ConfigError(f"{where}.{key}: unknown{suggest(key, hints)}")
  default = {f.name for f in dataclasses.fields(cls) if not _required(f)}
  missing = [k for k in hints if k not in values and k not in default]
  if missing:
    raise ConfigError(f"{where}.{missing[0]}: missing")
  return cls(
    **{k: _convert(hints[k], v, f"{where}.{k}") for k, v in values.items()}
  )


def _required(field: dataclasses.Field) -> bool:
  return field.default is dataclasses.MISSING


def _group(values: Any, where: str) -> None:
  if not isinstance(values, Mapping):
    raise ConfigError(f"{where}: a group of fields is needed, found {values!r}")


def _convert(hint: Any, value: Any, where: str) -> Any:
  if dataclasses.is_dataclass(hint):
    return build(hint, value, where)
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    if value is None:
      return None
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
    _group(value, where)
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
