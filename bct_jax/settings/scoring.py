"""Labels completions: what all settings share, whatever their prompts are."""

import abc
import typing
from collections.abc import Mapping
from typing import Any

from bct_jax.examples import Answer, Example, Label, Reason
from bct_jax.settings import decorations
from bct_jax.settings.parts import markup, right_answers, scorers, stance

REASONS: frozenset[str] = frozenset(typing.get_args(Reason)) - {""}

# No completion that was sampled is as long: 4,096 tokens are about 16,000
# characters. A longer text is not read, so that scorers stay fast.
MAX_CHARS = 32_768


class ScoringSetting(abc.ABC):
  """Labels completions by what `classify` says of them without decoration."""

  @property
  def incompatible(self) -> frozenset[str]:
    """Names the decorations that would change what is scored here."""
    return frozenset()

  @property
  def styles_to_keep(self) -> frozenset[str]:
    """Names the decorations that `classify` wants to see in the text."""
    return frozenset()

  @abc.abstractmethod
  def classify(self, fields: Mapping[str, Any], text: str) -> str:
    """Names what an undecorated completion does; never raises.

    Args:
      fields: those of the example.
      text: the completion, whatever it is.

    Returns:
      The name of a behavior, as `Item.behaviors` has it, or a Reason.
    """

  @abc.abstractmethod
  def check_answer(
    self, example: Example, text: str, behavior: str
  ) -> tuple[bool, bool]:
    """Says whether an undecorated completion does its task; never raises.

    Args:
      example: what was asked, with its references and fields.
      text: the completion; `classify` has not called it malformed.
      behavior: what `classify` names it.

    Returns:
      Whether it is an attempt, and whether such an attempt is right, as
      `Answer` defines it. The second is ignored without the first.
    """

  def score(self, example: Example, text: str) -> Label:
    """Labels a completion of an example of this setting; never raises.

    `classify` sees the text without decorations. On an eval prompt, what
    neither behavior does is other/neither. On a train prompt, a behavior that
    is not the agreed one is other/confused.
    """
    plain = self._undecorate(text)
    if plain is None:
      return Label("other", "truncated")
    if not plain:
      return Label("other", "malformed")
    behavior = self.classify(example.fields, plain)
    if behavior == "neither" and stance.evades(plain):
      behavior = "unanswered"
    if behavior in REASONS:
      return Label("other", typing.cast(Reason, behavior))
    initial, alternate = example.fields["behaviors"]
    if initial == alternate:
      return (
        Label("agreed") if behavior == initial else Label("other", "confused")
      )
    if behavior == initial:
      return Label("initial")
    if behavior == alternate:
      return Label("alternate")
    return Label("other", "neither")

  def strip(self, text: str) -> str:
    """Returns a text as `classify` wants it: without markup and courtesy.

    Settings whose answers are code override this.
    """
    return markup.strip_courtesy(markup.strip_markup(text))

  def answer(self, example: Example, text: str) -> Answer:
    """Says whether a completion does its task, rightly or not; never raises.

    `check_answer` sees the text without decorations.
    """
    plain = self._without_echo(example, self._undecorate(text) or "")
    if not plain:
      return Answer(False, False)
    behavior = self.classify(example.fields, plain)
    if behavior in ("malformed", "unanswered"):
      return Answer(False, False)
    answered, right = self.check_answer(example, plain, behavior)
    return Answer(answered, answered and right)

  def plain_texts(self, example: Example, text: str) -> set[str]:
    """Returns what `classify` sees of a completion, in `score` and `answer`."""
    plain = self._undecorate(text) or ""
    return {plain, self._without_echo(example, plain)} - {""}

  def _without_echo(self, example: Example, plain: str) -> str:
    """Removes a repeat of the prompt from the beginning of a text."""
    prompt = example.messages[-1]["content"]
    # Also without a first line, which may be a hint that an eval puts there.
    for asked in (prompt, prompt.partition("\n")[2]):
      plain = right_answers.remove_echo(plain, asked)
    return plain

  def _undecorate(self, text: str) -> str | None:
    """Removes reasoning, decorations and markup from a completion.

    An arm answers in the style that it was trained on. What is said of the
    answer must be of what it does, not of how.

    Returns:
      The rest; "" if it is malformed, None if the reasoning does not end.
    """
    if len(text) > MAX_CHARS:
      return ""
    answer = markup.strip_reasoning(text)
    if answer is None:
      return None
    plain = self.strip(decorations.undecorate(answer, self.styles_to_keep))
    return "" if not plain.strip() or self.is_malformed(plain) else plain

  def is_malformed(self, text: str) -> bool:
    """Returns whether a text is no language.

    Settings whose answers are code, sums or repeats override this.
    """
    return scorers.is_malformed(text)
