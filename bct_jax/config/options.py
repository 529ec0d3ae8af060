"""Checks the options of a setting or of an objective.

Options come from a config or a command line as names with values. Those of a
setting, and those of an objective, are the fields of its dataclass. The two
name a wrong option in messages of their own.
"""

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class WrongOption:
  """Describes an option that a class cannot have.

  Attributes:
    name: the option.
    value: its value.
    valid: all options of the class.
    needed_type: the name of the type that a value must have; "" if no option
      has the name.
  """

  name: str
  value: Any
  valid: tuple[str, ...]
  needed_type: str


def find_wrong_option(
  cls: type | None, options: Mapping[str, Any]
) -> WrongOption | None:
  """Returns the first option that a class has not, or has with another type.

  The type of an option is that of its default. A float may be a whole number.

  Args:
    cls: a dataclass whose fields all have defaults; None has no options.
    options: values by name.

  Returns:
    The first wrong option, or None if all of them are right.
  """
  defaults = {} if cls is None else inspect.signature(cls).parameters
  valid = tuple(defaults)
  factories = {
    f.name: f.default_factory
    for f in (dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ())
    if f.default_factory is not dataclasses.MISSING
  }
  for name, value in options.items():
    if name not in defaults:
      return WrongOption(name, value, valid, "")
    make = factories.get(name)
    needed = type(make() if make else defaults[name].default)
    if type(value) is not needed and (needed, type(value)) != (float, int):
      return WrongOption(name, value, valid, needed.__name__)
  return None
