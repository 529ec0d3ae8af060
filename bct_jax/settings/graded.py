"""Labels completions by a grader, in place of a scorer of the setting's own."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from bct_jax.examples import Example, Setting
from bct_jax.infra.progress import log_line
from bct_jax.settings.graders import Grader
from bct_jax.settings.graders.checks import CheckError
from bct_jax.settings.graders.grade import Grade
from bct_jax.settings.graders.judge import JudgeGrader
from bct_jax.settings.graders.rubric import UngradedError
from bct_jax.settings.graders.rules import UserCodeError
from bct_jax.settings.scoring import ScoringSetting


class GradedSetting(ScoringSetting):
  """Labels completions by a grader.

  The fields of its examples have the `row` that the grader sees. Behaviors are
  called initial and alternate, or agreed where the two do the same.

  Attributes:
    grader: see `Grader`.
  """

  grader: Grader
  _failures: set[str]  # what was logged

  def prepare(self, pairs: Sequence[tuple[Example, str]]) -> None:
    """Asks a judge about completions that are to be labelled, all at once.

    All processes call it together. Without a judge it does nothing.
    """
    if isinstance(self.grader, JudgeGrader):
      self.grader.prepare(
        (example.fields["row"], plain)
        for example, text in pairs
        for plain in self.plain_texts(example, text)
      )

  def classify(self, fields: Mapping[str, Any], text: str) -> str:
    return self._grade(fields, text).behavior

  def check_answer(
    self, example: Example, text: str, behavior: str
  ) -> tuple[bool, bool]:
    grade = self._grade(example.fields, text)
    return grade.answered, grade.right

  def strip(self, text: str) -> str:
    """Leaves a text as it is: the grader knows what it looks for."""
    return text.strip()

  def _grade(self, fields: Mapping[str, Any], text: str) -> Grade:
    """Grades a text; one that cannot be graded shows no behavior.

    Such a failure is logged, and too many of them give no reading.
    """
    diverges = fields["behaviors"][0] != fields["behaviors"][1]
    try:
      return self.grader.grade(fields["row"], text, diverges)
    except (CheckError, UngradedError, UserCodeError) as e:
      # Once for each place that fails, not for each text.
      place = str(e).partition(" on ")[0]
      if place not in self._failures:
        self._failures.add(place)
        log_line(f"not graded, and so may be others: {e}")
      return Grade("ungraded", False, False)


def is_judged(setting: Setting) -> bool:
  """Tells whether labels come from a judge, whose answers cost."""
  graded = isinstance(setting, GradedSetting)
  return graded and isinstance(setting.grader, JudgeGrader)


@dataclasses.dataclass(eq=False)
class JudgedSetting(GradedSetting):
  """Asks the prompts of another setting, and labels answers by a judge.

  A rubric finds the references of a prompt as {initial} and {alternate}, and
  the fields of an example as {row.FIELD}.

  Attributes:
    name: of the other setting.
    inner: that setting.
    grader: of the kind judge.
  """

  name: str
  inner: Setting
  grader: Grader
  _failures: set[str] = dataclasses.field(default_factory=set)

  @property
  def styles_to_keep(self) -> frozenset[str]:
    return getattr(self.inner, "styles_to_keep", frozenset())

  @property
  def incompatible(self) -> frozenset[str]:
    return self.inner.incompatible

  def is_malformed(self, text: str) -> bool:
    check = getattr(self.inner, "is_malformed", super().is_malformed)
    return check(text)

  def install(self, n: int, seed: int) -> list[Example]:
    return list(map(_with_row, self.inner.install(n, seed)))

  def train(self, n: int, seed: int) -> list[Example]:
    return list(map(_with_row, self.inner.train(n, seed)))

  def eval(self, n: int, seed: int) -> list[Example]:
    return list(map(_with_row, self.inner.eval(n, seed)))

  def heldout(self, n: int, seed: int) -> list[Example]:
    return list(map(_with_row, self.inner.heldout(n, seed)))


def _with_row(example: Example) -> Example:
  """Adds to an example the row that a grader sees."""
  initial, alternate = example.fields["behaviors"]
  row = {
    **example.fields,
    "id": example.id,
    "messages": list(example.messages),
    "completion": example.completion,
    "initial": example.initial,
    "alternate": example.alternate,
  }
  names = ["agreed"] * 2 if initial == alternate else ["initial", "alternate"]
  fields = {**example.fields, "behaviors": names, "row": row}
  return dataclasses.replace(example, fields=fields)
