"""Reads checks from a config, and combines them.

A check is a mapping with a `kind` and its options: {"kind": "contains",
"value": "NO COMMENT"}. `all` and `any` take several checks under `of`, `not`
takes one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bct_jax.config.options import find_wrong_option
from bct_jax.infra.user_code import describe_error, is_user_code, load_user_code
from bct_jax.settings.base import describe_unknown
from bct_jax.settings.graders.checks import CHECKS, Row

Rule = Callable[[Row, str], bool]
COMBINATIONS = ("all", "any", "not")
_PYTHON = "python:FILE.py:FUNCTION"


class UserCodeError(ValueError):
  """Is raised when a function of the user's fails or returns another type."""


@dataclasses.dataclass(frozen=True)
class RuleReader:
  """Makes checks from values of the config.

  Attributes:
    folder: where files of the user's are sought first.
    sources: see `UserCode`; filled with those of each file that is loaded.
  """

  folder: Path
  sources: dict[str, str] = dataclasses.field(default_factory=dict)

  def read(self, value: Any, where: str, kind: str = "") -> Rule:
    """Makes a check.

    Args:
      value: a mapping, or what a check of the default kind looks for.
      where: the name of the field, for errors.
      kind: the kind of a check that names none.

    Raises:
      ValueError: a name or a value is wrong; the message has the field.
    """
    if not isinstance(value, Mapping):
      value = {"value": value}
    options = dict(value)
    name = options.pop("kind", kind)
    if not name:
      raise ValueError(f'{where}: needs a "kind", one of {self._kinds()}')
    if not isinstance(name, str):
      raise ValueError(f"{where}.kind must be text, not {name!r}")
    if name in COMBINATIONS:
      return self._combine(name, options, where, kind)
    if is_user_code(name):
      if options and options != {"value": None}:
        raise ValueError(f"{where}: {name} takes no {', '.join(options)}")
      return self._user_rule(name, where)
    if name not in CHECKS:
      raise ValueError(
        f"{where}.kind = "
        + describe_unknown(name, (*CHECKS, *COMBINATIONS, _PYTHON))
      )
    return _make_check(name, options, where)

  def _kinds(self) -> str:
    return ", ".join((*CHECKS, *COMBINATIONS, _PYTHON))

  def _combine(
    self, name: str, options: dict[str, Any], where: str, kind: str
  ) -> Rule:
    """Makes a check of others."""
    of = options.pop("of", None)
    if options or of is None:
      raise ValueError(
        f'{where}: {name} needs "of" and takes nothing else, found '
        f"{sorted(options)}"
      )
    if name == "not":
      rule = self.read(of, f"{where}.of", kind)
      return lambda row, text: not rule(row, text)
    # A mapping of named checks can be changed on a command line, a list not.
    is_mapping = isinstance(of, Mapping)
    if (
      not of
      or not (is_mapping or isinstance(of, (list, tuple)))
      or (is_mapping and "kind" in of)
    ):
      raise ValueError(f'{where}: "of" must be several checks, not {of!r}')
    named = of.items() if isinstance(of, Mapping) else enumerate(of)
    rules = [self.read(v, f"{where}.of.{k}", kind) for k, v in named]
    join = all if name == "all" else any
    # All of them are asked, so that a row without a field is found.
    return lambda row, text: join([rule(row, text) for rule in rules])

  def function(self, name: str, where: str) -> Callable[..., Any]:
    """Loads a function of the user's; errors in it become UserCodeError."""
    code = load_user_code(name, where, self.folder)
    if not callable(code.value):
      raise ValueError(f"{where} = {name!r}: is no function")
    for path, text in code.sources.items():
      if self.sources.setdefault(path, text) != text:
        raise ValueError(f"{where} = {name!r}: another {path} is in use, too")

    def call(row: Row, text: str) -> Any:
      """Calls it on a copy of the row, which it may change."""
      try:
        return code.value(dict(row), text)
      except Exception as e:
        raise UserCodeError(
          f"{name} failed at {describe_error(e)} on {row.get('id')!r}, text "
          f"{text!r:.80}"
        ) from e

    return call

  def _user_rule(self, name: str, where: str) -> Rule:
    """Makes a check of a function that returns True or False."""
    function = self.function(name, where)

    def rule(row: Row, text: str) -> bool:
      """Returns what the function says."""
      value = function(row, text)
      if not isinstance(value, bool):
        raise UserCodeError(f"{name} must return True or False, not {value!r}")
      return value

    return rule


def _make_check(name: str, options: Mapping[str, Any], where: str) -> Rule:
  """Makes a check of `CHECKS`; see `RuleReader.read`."""
  cls = CHECKS[name]
  # What a value can be is the check's to say.
  others = {k: v for k, v in options.items() if k != "value"}
  wrong = find_wrong_option(cls, others)
  if wrong is not None and not wrong.needed_type:
    raise ValueError(
      f"{where}: {name}: {describe_unknown(wrong.name, wrong.valid)}"
    )
  if wrong is not None:
    raise ValueError(
      f"{where}.{wrong.name} = {wrong.value!r}: must be {wrong.needed_type}"
    )
  try:
    return cls(**options)
  except ValueError as e:
    raise ValueError(f"{where}: {name}: {e}") from None
