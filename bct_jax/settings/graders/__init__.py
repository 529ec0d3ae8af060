"""Grades completions by rules of a config, or by a function of the user's.

A grader names the behavior that a completion shows, and says apart from it
whether the completion is an attempt at the task, and a right one.

A grader of rules has a check for each behavior, `initial` and `alternate`, and
maybe for `agreed`, `answered` and `right`. A grader that is no set of rules has
`kind` alone.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from bct_jax.examples import Reason
from bct_jax.infra.user_code import PREFIX
from bct_jax.settings.base import describe_unknown
from bct_jax.settings.graders.checks import CHECKS, Row
from bct_jax.settings.graders.grade import BEHAVIORS, Grade
from bct_jax.settings.graders.judge import KIND, TASK_RULES, Judge, JudgeGrader
from bct_jax.settings.graders.rules import Rule, RuleReader, UserCodeError

RULES = ("initial", "alternate", "agreed", "answered", "right")
_REASONS = tuple(filter(None, typing.get_args(Reason)))


class Grader(Protocol):
  """Grades a completion of a row of a file.

  Attributes:
    sources: of the files that decide grades, see `UserCode`.
  """

  @property
  def sources(self) -> Mapping[str, str]: ...

  def grade(self, row: Row, text: str, diverges: bool) -> Grade:
    """Grades a text.

    Args:
      row: of the user's file. `completion` is what it is trained on, if known.
      text: the completion, without reasoning and decoration.
      diverges: whether the behaviors part on this row.

    Raises:
      CheckError: the row lacks what a check compares with.
      UserCodeError: a function of the user's fails.
      UngradedError: a judge gave no verdict.
    """
    ...


@dataclasses.dataclass(frozen=True)
class RuleGrader:
  """Grades by checks.

  Where the behaviors agree, a text is `agreed` if the check `agreed` holds, or
  `alternate` where there is no such check. If `initial` holds as well, and does
  not hold for the completion of the row, the text shows the initial behavior
  where it should not.
  """

  rules: Mapping[str, Rule]
  sources: Mapping[str, str]

  def grade(self, row: Row, text: str, diverges: bool) -> Grade:
    holds = {name: rule(row, text) for name, rule in self.rules.items()}
    behavior = self._of_eval(holds) if diverges else self._of_train(row, holds)
    shows = behavior in BEHAVIORS
    right = holds.get("right", shows)
    answered = holds.get("answered", shows or right)
    return Grade(behavior, answered, answered and right)

  def _of_eval(self, holds: Mapping[str, bool]) -> str:
    """Names the behavior where the two part."""
    if holds["initial"] == holds["alternate"]:
      return "both" if holds["initial"] else "neither"
    return "initial" if holds["initial"] else "alternate"

  def _of_train(self, row: Row, holds: Mapping[str, bool]) -> str:
    """Names the behavior where the two agree."""
    own = row.get("completion")
    if holds["initial"] and not (own and self.rules["initial"](row, own)):
      return "initial"
    agreed = holds.get("agreed", holds["alternate"])
    return "agreed" if agreed else "neither"


@dataclasses.dataclass(frozen=True)
class FunctionGrader:
  """Grades by a function of the user's: (row, text) -> behavior or mapping.

  A mapping has `behavior`, and may have `answered` and `right`.
  """

  name: str
  function: Callable[[Row, str], Any]
  sources: Mapping[str, str]

  def grade(self, row: Row, text: str, diverges: bool) -> Grade:
    value: Any = self.function(row, text)
    value = {"behavior": value} if isinstance(value, str) else value
    if not isinstance(value, Mapping) or not (
      {"behavior"} <= {*value} <= {"behavior", "answered", "right"}
    ):
      raise UserCodeError(
        f"{self.name} must return the name of a behavior, or a mapping of "
        f"behavior, answered and right; found {value!r:.120}"
      )
    behavior = value["behavior"]
    if behavior not in BEHAVIORS + _REASONS:
      raise UserCodeError(
        f"{self.name}: behavior = "
        + describe_unknown(behavior, BEHAVIORS + _REASONS)
      )
    for name in ("answered", "right"):
      if not isinstance(value.get(name, True), bool):
        raise UserCodeError(f"{self.name}: {name} must be True or False")
    if not diverges and behavior == "alternate":
      behavior = "agreed"  # there the two do the same
    if diverges and behavior == "agreed":
      raise UserCodeError(
        f"{self.name} says 'agreed' of {row.get('id')!r}, where the behaviors "
        "part: 'initial' or 'alternate' is needed"
      )
    shows = behavior in BEHAVIORS
    right = value.get("right", shows)
    answered = value.get("answered", shows or right)
    return Grade(behavior, answered, answered and right)


def make_grader(
  values: Mapping[str, Any],
  folder: Path,
  where: str = "setting.options.grader",
  judge: Judge | None = None,
) -> Grader:
  """Makes a grader from the config.

  Args:
    values: rules by name, with `kind` for those that name none; or `kind` alone
      for a grader that is no set of rules, as "python:FILE.py:FUNCTION"; or the
      kind "judge", maybe with rules about the task.
    folder: where files of the user's are sought first.
    where: the field of the config, for errors.
    judge: of that kind; without one nothing can be graded by it.

  Raises:
    ValueError: a name or a value is wrong; the message has the field.
  """
  reader = RuleReader(folder)
  kind = values.get("kind", "")
  rules = {name: value for name, value in values.items() if name != "kind"}
  if not isinstance(kind, str):
    raise ValueError(f"{where}.kind must be text, not {kind!r}")
  if kind.startswith(PREFIX) and not rules:
    function = reader.function(kind, f"{where}.kind")
    return FunctionGrader(kind, function, reader.sources)
  is_judge, known = kind == KIND, TASK_RULES if kind == KIND else RULES
  for name in rules:
    if name not in known:
      raise ValueError(f"{where}: unknown {describe_unknown(name, known)}")
  if is_judge:
    made = {k: reader.read(v, f"{where}.{k}") for k, v in rules.items()}
    sources = {**reader.sources, **(judge.sources if judge else {})}
    return JudgeGrader(judge, made, sources)
  missing = [name for name in ("initial", "alternate") if name not in rules]
  if missing:
    raise ValueError(
      f"{where}.{missing[0]}: missing; a grader has a check for `initial` and "
      f"one for `alternate`, as {{'kind': 'contains', 'value': 'NO COMMENT'}}, "
      f"or kind = 'judge' or 'python:FILE.py:FUNCTION'; kinds of checks: "
      f"{', '.join(CHECKS)}, all, any, not"
    )
  made = {k: reader.read(v, f"{where}.{k}", kind) for k, v in rules.items()}
  return RuleGrader(made, reader.sources)
