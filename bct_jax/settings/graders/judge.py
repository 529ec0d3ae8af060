"""Grades completions by a model, the judge, under a rubric."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from bct_jax.examples import Message
from bct_jax.settings.graders.checks import CheckError, Row
from bct_jax.settings.graders.grade import BEHAVIORS, Grade
from bct_jax.settings.graders.rubric import Rubric, UngradedError
from bct_jax.settings.graders.rules import Rule

KIND = "judge"
TASK_RULES = ("right", "answered")  # which may be given beside it
Prompt = tuple[Message, ...]


class Judge(Protocol):
  """Asks a model about completions; `interop/judge.py` has it.

  Attributes:
    rubric: what it asks, and the words of verdicts.
    sources: what decides its verdicts, as `UserCode.sources`.
  """

  @property
  def rubric(self) -> Rubric: ...

  @property
  def sources(self) -> Mapping[str, str]: ...

  def ask(self, prompts: Sequence[Prompt]) -> None:
    """Asks what was not asked before; all processes call it together."""
    ...

  def reply(self, prompt: Prompt) -> str:
    """Returns the reply to what was asked.

    Raises:
      UngradedError: there is none; says why.
    """
    ...


@dataclasses.dataclass(frozen=True)
class JudgeGrader:
  """Grades by the verdicts of a judge.

  Where a rule is given for the task, or the rubric has no line about it, the
  judge says the behavior alone. Rules then say the rest, as in `RuleGrader`.

  Attributes:
    judge: None where nothing is to be graded.
    rules: `right` and `answered`, where given.
    sources: see `Grader`.
  """

  judge: Judge | None
  rules: Mapping[str, Rule]
  sources: Mapping[str, str]

  def grade(self, row: Row, text: str, diverges: bool) -> Grade:
    judge = self._judge
    verdict = judge.rubric.parse(judge.reply(judge.rubric.render(row, text)))
    behavior = verdict["behavior"]
    if not diverges and behavior == "alternate":
      behavior = "agreed"  # there the two do the same
    if diverges and behavior == "agreed":
      raise UngradedError("the judge says 'agreed' where the behaviors part")
    holds = {name: rule(row, text) for name, rule in self.rules.items()}
    shows, said = behavior in BEHAVIORS, verdict.get("answer")
    right = holds.get("right", shows if said is None else said == "right")
    attempt = shows if said is None else said != "unanswered"
    answered = holds.get("answered", attempt or right)
    return Grade(behavior, answered, answered and right)

  def prepare(self, asked: Iterable[tuple[Row, str]]) -> None:
    """Asks about texts of rows, so that `grade` finds the replies."""
    judge, prompts = self._judge, []
    for row, text in asked:
      try:
        prompts.append(judge.rubric.render(row, text))
      except CheckError:
        continue  # which `grade` raises
    judge.ask(prompts)

  def check(self, row: Row) -> None:
    """Checks that a row has what rubric and rules need; asks nothing.

    Raises:
      CheckError, UserCodeError: it has not, or a function fails.
    """
    if self.judge is not None:
      self.judge.rubric.render(row, "word")
    for rule in self.rules.values():
      rule(row, "word")

  @property
  def _judge(self) -> Judge:
    """Returns the judge.

    Raises:
      ValueError: there is none.
    """
    if self.judge is None:
      raise ValueError(
        "setting.options.grader.kind = 'judge' needs eval.judge.model and "
        "eval.judge.rubric"
      )
    return self.judge
