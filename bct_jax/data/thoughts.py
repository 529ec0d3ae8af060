"""Reads what a model wrote: its thought, its answer, and where it stops."""

import bisect
import dataclasses
from collections.abc import Callable, Sequence

from bct_jax.data.template import Boundary
from bct_jax.data.vocabulary import Vocabulary

# Takes the ids so far, and returns how many of them end a text, or None.
FindStop = Callable[[Sequence[int]], int | None]
_WORD = "Hm"  # no marker has it


@dataclasses.dataclass(frozen=True)
class Reply:
  """Holds a completion, read.

  Attributes:
    thought: the reasoning, without its markers; "" where there is none.
    text: the answer, which scorers see; "" where the thought has no end.
    finished: whether the thought, if there is one, has an end.
    thought_tokens: how many of the tokens are of the thought and its markers;
      all of them where the thought has no end.
  """

  thought: str
  text: str
  finished: bool = True
  thought_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Reader:
  """Turns the ids of completions into text.

  Attributes:
    vocabulary: of the model.
    stop_ids: the ids that end a completion.
    blank, gap: whitespace that the template puts before an answer and behind
      it, see Boundary.
    markers: the texts before and behind a thought, as the vocabulary reads
      them back; None without a place for one.
    anchor: the last id of a prompt, behind which completions are decoded. Empty
      where it makes no difference.
  """

  vocabulary: Vocabulary
  stop_ids: frozenset[int]
  blank: str = ""
  gap: str = ""
  markers: tuple[str, str] | None = None
  anchor: tuple[int, ...] = ()

  @classmethod
  def make(
    cls,
    vocabulary: Vocabulary,
    stop_ids: frozenset[int],
    boundary: Boundary,
    prompt: str,
    open_prompt: str,
  ) -> "Reader":
    """Makes the reader of a template's completions.

    Args:
      vocabulary, stop_ids: of the model.
      boundary: of the template.
      prompt: any prompt for an answer alone.
      open_prompt: the same with room for a thought.
    """
    # Some tokenizers drop the space that begins a text.
    ids = vocabulary.encode(prompt)
    drops = vocabulary.text(vocabulary.extend(prompt, ids, " a")) != " a"
    out = cls(
      vocabulary,
      stop_ids,
      boundary.blank,
      boundary.gap,
      boundary.markers,
      tuple(ids[-1:]) if drops else (),
    )
    if boundary.markers is None:
      return out
    # Some put a space behind a special token, as in "<|channel|> analysis".
    block = f"{_WORD.join(boundary.markers)}{_WORD}"
    ids = vocabulary.encode(open_prompt)
    parts = out.text(vocabulary.extend(open_prompt, ids, block)).split(_WORD)
    if len(parts) == 3:
      out = dataclasses.replace(out, markers=(parts[0], parts[1]))
    return out

  def text(self, ids: Sequence[int]) -> str:
    """Decodes all of the ids of a completion."""
    if not self.anchor:
      return self.vocabulary.text(ids)
    before = self.vocabulary.text(self.anchor)
    return self.vocabulary.text([*self.anchor, *ids]).removeprefix(before)

  def decode(
    self,
    ids: Sequence[int],
    stop: Sequence[str] = (),
    prefix: Sequence[int] = (),
  ) -> str:
    """Decodes a completion up to where it stops.

    Whitespace that the template itself puts around an answer is left out.

    Args:
      ids: of the completion; a stop id at their end is left out.
      stop: the text is cut before the first of these strings.
      prefix: ids that the answer was made to begin with. Their text stands
        first, and stop strings do not count in it.
    """
    ids, gap = self._without_end(ids)
    start = len(self.text(prefix)) if prefix else 0
    text = self.text([*prefix, *ids])
    return _cut(text, stop, gap, start).removeprefix(self.blank)

  def reply(self, ids: Sequence[int], stop: Sequence[str]) -> Reply:
    """Reads a completion that may begin with a thought; see Chat.reply."""
    assert self.markers is not None
    num_tokens = len(ids)
    ids, gap = self._without_end(ids)
    whole = self.text(ids)
    out = split_text(whole, self.markers)
    count = 0
    if not out.finished:
      count = num_tokens  # an end of the turn comes within the thought
    elif out.text != whole:
      count = count_thought_tokens(ids, self.text, self.markers)
    text = _cut(out.text, stop, gap)
    return dataclasses.replace(out, text=text, thought_tokens=count)

  def _without_end(self, ids: Sequence[int]) -> tuple[list[int], str]:
    """Returns ids without a stop id at their end, and the gap before it."""
    if not ids or ids[-1] not in self.stop_ids:
      return list(ids), ""
    return list(ids[:-1]), self.gap

  def find_stop(self, stop: Sequence[str], thinking: bool) -> FindStop:
    """Returns a function with which the sampler looks for stop strings.

    The function takes the ids so far. It returns the least number of them whose
    text has one of the strings, or None. A string may begin within one token
    and end within another.

    Args:
      stop: the strings.
      thinking: whether a thought comes first, in which they do not count.
    """

    def has_stop(ids: Sequence[int]) -> bool:
      text = self.vocabulary.text(ids)
      if thinking:
        assert self.markers is not None
        text = split_text(text, self.markers).text
      return any(s in text for s in stop)

    def find(ids: Sequence[int]) -> int | None:
      if not has_stop(ids):
        return None
      return next(n for n in range(1, len(ids) + 1) if has_stop(ids[:n]))

    return find


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


def _cut(text: str, stop: Sequence[str], gap: str, start: int = 0) -> str:
  """Cuts a text before the first stop string behind `start`, or the gap off."""
  ends = [text.find(s, start) for s in stop if s in text[start:]]
  return text[: min(ends)] if ends else text.removesuffix(gap)
