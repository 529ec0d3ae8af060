"""Splits what a model wrote into its thought and its answer."""

import bisect
import dataclasses
from collections.abc import Callable, Sequence


@dataclasses.dataclass(frozen=True)
class Reply:
  """Holds a completion, read.

  Attributes:
    thought: the reasoning, without its markers; "" where there is none.
    text: the answer, which scorers see; "" where the thought has no end.
    finished: whether the thought, if there is one, has an end.
    thought_tokens: how many of the tokens are of the thought and its markers.
  """

  thought: str
  text: str
  finished: bool = True
  thought_tokens: int = 0


def split_text(text: str, markers: tuple[str, str]) -> Reply:
  """Splits a text that follows a prompt with room for a thought.

  Whitespace around the thought and before the answer is the markers'. Where a
  thought needs a marker before it and the text has none, all is the answer.

  Args:
    text: of a completion.
    markers: the texts before a thought and behind it, see Boundary.
  """
  opening, closing = (m.strip() for m in markers)
  if opening:
    if not text.lstrip().startswith(opening):
      return Reply("", text)
    text = text.lstrip().removeprefix(opening)
  thought, closed, answer = text.partition(closing)
  return Reply(thought.strip(), answer.lstrip(), bool(closed))


def count_thought_tokens(
  ids: Sequence[int],
  decode: Callable[[Sequence[int]], str],
  markers: tuple[str, str],
) -> int:
  """Counts the tokens before the answer; all of them where there is none.

  Args:
    ids: of a completion that begins with a thought, without the turn's end.
    decode: turns ids into text.
    markers: see `split_text`.
  """
  first = bisect.bisect_left(
    range(len(ids) + 1),
    True,
    key=lambda n: bool(split_text(decode(ids[:n]), markers).text),
  )
  return first - 1


def mentions(thought: str, words: Sequence[str]) -> bool:
  """Tells whether a thought has one of some words, in whatever case."""
  return any(word.lower() in thought.lower() for word in words)
