"""Reads a rubric: what a judge is asked, and the words that it answers with.

A rubric is a text file. It begins with the words and what they mean:

    BEHAVIOR: SILENT = initial, TALKS = alternate, UNCLEAR = neither
    ANSWER: RIGHT = right, WRONG = wrong, NONE = unanswered
    --- user
    Here is a reply to a question. ...
    Question: {prompt}
    Reply: {completion}
    Last, write two lines: "BEHAVIOR: " with SILENT, TALKS or UNCLEAR, and
    "ANSWER: " with RIGHT, WRONG or NONE.

The first line is about behavior, and the second, which may be absent, about the
task. Then come the turns of what is asked, with placeholders: `--- system` and
`--- assistant` begin a turn as well, so that a judge can be shown examples.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bct_jax.config import suggest
from bct_jax.examples import Message
from bct_jax.settings.base import describe_unknown
from bct_jax.settings.graders.checks import CheckError, Row

# What a word may mean, of either line. The first two of each are needed.
MEANINGS = {
  "behavior": (
    *("initial", "alternate", "agreed"),
    *("both", "wrong", "unanswered", "neither"),
  ),
  "answer": ("right", "wrong", "unanswered"),
}
_PLACEHOLDERS = ("prompt", "completion", "initial", "alternate", "row.FIELD")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.]*)\}")
# Begins a turn; a line of dashes alone is part of a text.
_TURN = re.compile(r"---\s*(system|user|assistant)\s*")


class UngradedError(ValueError):
  """Is raised where there is no verdict on a completion; says why."""


@dataclasses.dataclass(frozen=True)
class Rubric:
  """Holds a rubric.

  Attributes:
    source: the whole file.
    turns: what is asked, with placeholders.
    words: what the line is about ("behavior", maybe "answer") -> what it begins
      with, as "BEHAVIOR:", and the meaning of each word.
  """

  source: str
  turns: tuple[Message, ...]
  words: Mapping[str, tuple[str, Mapping[str, str]]]

  @classmethod
  def read(cls, source: str, where: str) -> "Rubric":
    """Reads the text of a file.

    Args:
      source: the text.
      where: the file, for errors.

    Raises:
      ValueError: it is no rubric; the message has file and line.
    """
    lines = source.splitlines()
    starts = [i for i, line in enumerate(lines) if _TURN.fullmatch(line)]
    words: dict[str, tuple[str, Mapping[str, str]]] = {}
    for number, line in enumerate(lines[: (starts or [len(lines)])[0]], 1):
      if line.strip():
        about, begin, meanings = _read_words(line, f"{where}:{number}")
        if about in words:
          raise ValueError(f"{where}:{number}: a second line of {about}")
        words[about] = begin, meanings
    if "behavior" not in words:
      raise ValueError(
        f"{where}: names no words for behavior: must begin with a line as "
        "'BEHAVIOR: SILENT = initial, TALKS = alternate'"
      )
    ends = [*starts[1:], len(lines)]
    turns = [_turn(lines[a:b]) for a, b in zip(starts, ends, strict=False)]
    if not turns or turns[-1]["role"] != "user":
      raise ValueError(
        f"{where}: what the judge is asked is missing: a line '--- user', and "
        "the text below it, must come last"
      )
    _check_text([turn["content"] for turn in turns], words, where)
    return cls(source, tuple(turns), words)

  def render(self, row: Row, completion: str) -> tuple[Message, ...]:
    """Returns what the judge is asked of a completion.

    What is filled in is not searched for placeholders.

    Raises:
      CheckError: the row lacks what a placeholder stands for.
    """
    known = {"prompt": prompt_text(row), "completion": completion}

    def fill(found: re.Match[str]) -> str:
      """Returns what a placeholder stands for."""
      name = found[1]
      if name in known:
        return known[name]
      value: Any = row
      for part in name.removeprefix("row.").split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
      if value is None or value == "":
        raise CheckError(f"the row has nothing for {found[0]} of the rubric")
      return value if isinstance(value, str) else f"{value}"

    return tuple(
      {"role": turn["role"], "content": _PLACEHOLDER.sub(fill, turn["content"])}
      for turn in self.turns
    )

  def parse(self, reply: str) -> dict[str, str]:
    """Reads the verdict in a reply; nothing is guessed.

    Of each line that the rubric names there must be one, and what it has must
    be one of the words, spelled so. Other lines are not read.

    Returns:
      "behavior", and "answer" where the rubric asks for it -> the meaning.

    Raises:
      UngradedError: the reply has no such verdict.
    """
    out, lines = {}, [line.strip() for line in reply.splitlines()]
    for about, (begin, words) in self.words.items():
      found = [line for line in lines if line.startswith(begin)]
      if len(found) != 1:
        raise UngradedError(
          f"the reply has {len(found)} lines {begin!r}, and must have one"
        )
      word = found[0].removeprefix(begin).strip()
      if word not in words:
        raise UngradedError(
          f"the reply has {word!r:.60} in its line {begin!r}, which is none of "
          f"{', '.join(words)}"
        )
      out[about] = words[word]
    return out


def prompt_text(row: Row) -> str:
  """Returns the prompt of a row: the user's turn, or a dialogue with names."""
  turns = row.get("messages") or row.get("prompt") or ""
  if isinstance(turns, str):
    return turns
  turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
  if [turn["role"] for turn in turns] == ["user"]:
    return turns[0]["content"]
  return "\n\n".join(f"{t['role'].title()}: {t['content']}" for t in turns)


def _read_words(line: str, where: str) -> tuple[str, str, dict[str, str]]:
  """Reads "BEHAVIOR: SILENT = initial, ..."; see `Rubric.words`.

  Returns:
    What the line is about, what it begins with, and the meaning of each word.
  """
  name, colon, rest = line.strip().partition(":")
  about = name.lower()
  if not colon or about not in MEANINGS:
    raise ValueError(
      f"{where}: must begin with 'BEHAVIOR:' or 'ANSWER:', not {line!r:.60}"
    )
  words: dict[str, str] = {}
  for part in rest.split(","):
    word, equals, meaning = (x.strip() for x in part.partition("="))
    if not equals or not word:
      raise ValueError(
        f"{where}: must be words with what they mean, as 'SILENT = initial', "
        f"not {part.strip()!r}"
      )
    if meaning not in MEANINGS[about]:
      raise ValueError(
        f"{where}: {word} = {describe_unknown(meaning, MEANINGS[about])}"
      )
    if word in words:
      raise ValueError(f"{where}: {word} is there twice")
    words[word] = meaning
  for meaning in MEANINGS[about][:2]:
    if meaning not in words.values():
      raise ValueError(f"{where}: no word means {meaning!r}")
  return about, f"{name}:", words


def _turn(lines: Sequence[str]) -> Message:
  """Makes a turn of the line that begins it, and of those of its text."""
  found = _TURN.fullmatch(lines[0])
  assert found is not None
  role: Any = found[1]
  return {"role": role, "content": "\n".join(lines[1:]).strip()}


def _check_text(
  texts: Sequence[str],
  words: Mapping[str, tuple[str, Mapping[str, str]]],
  where: str,
) -> None:
  """Checks that the judge is told all that it needs.

  Raises:
    ValueError: a word or a placeholder is missing, or unknown.
  """
  whole = "\n".join(texts)
  for begin, meanings in words.values():
    for word in (begin, *meanings):
      if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", whole):
        raise ValueError(
          f"{where}: the turns never say {word!r}, so that the judge cannot "
          "know it"
        )
  for name in _PLACEHOLDER.findall(whole):
    if name not in _PLACEHOLDERS and not name.startswith("row."):
      near = suggest(name, _PLACEHOLDERS, "did you mean {{{}}}? ")
      raise ValueError(
        f"{where}: unknown placeholder {{{name}}}; {near}there are "
        f"{', '.join(f'{{{x}}}' for x in _PLACEHOLDERS)}; a field of the row "
        f"is {{row.{name}}}"
      )
  if "{completion}" not in texts[-1]:
    raise ValueError(
      f"{where}: the last turn has no {{completion}}, which is to be judged"
    )
