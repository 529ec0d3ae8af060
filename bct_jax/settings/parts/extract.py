"""Finds an answer in a completion: a number, a letter, a stance, a list.

All of it is linear in the length of the text and defined on any string, whose
decorations have been removed.
"""

import re
from collections.abc import Collection, Mapping

from bct_jax.settings.parts import scorers

# Not a part of a word, a decimal or a power.
_NUMBER = re.compile(r"(?<![\w.])(?<!\d\*\*)-?\d{1,15}(?!\w|\.\d|\*\*\d)")
# Behind a word that gives a result. Steps come before it, so the last counts.
_NAMED_NUMBER = re.compile(
  r"(?:\b(?:is|are|be|equals|gives|makes|answer|result|constitutes)\b|=)"
  r"[\s:*\"]{0,4}(-?\d{1,15})(?!\w|\.\d|\*\*\d)",
  re.I,
)
# "50 is larger", "the 50 is a larger number than 13", "50 is 37 more than 13".
_COMPARED = re.compile(
  r"(-?\d{1,15}) (?:is|be) (?:(?!not\b)[\w-]{1,12} ){0,3}?"
  r"(?:(larger|bigger|greater|higher|more)|smaller|lower|less|fewer)\b"
  r"(?: number)?(?: than (?:the )?-?\d{1,15})?",
  re.I,
)
_TWO_NUMBERS = re.compile(r"\b(?:is|are|be) (\d{1,15}) and (\d{1,15})\b", re.I)
# A text with more numbers gives no answer.
_MAX_NUMBERS = 40
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
# "B)", "(b)", "B." and "B:" as words of their own, not the "a" of "a cup".
_LETTER = re.compile(r"(?:(?<=\s)|^)\(?([a-d])(?:\)|[.:](?=\s|$))", re.I)
_NAMED_LETTER = re.compile(
  r"\b(?:answer|option|choice)(?: is|:)? \(?([a-d])(?![^\W_])", re.I
)
_ITEM = re.compile(r"(?m)^[ \t]*(?:step )?\d{1,2}[.):]", re.I)
_INLINE_ITEM = re.compile(
  r"(?:^|[.!;:,] |\n)[ \t]*(?:step )?\d{1,2}[.)] ", re.I
)

# "First, ... Next, ..." in prose.
_SEQUENCER = re.compile(
  r"(?:^|[.!?:;] |\n)(?:the )?(first|second|third|next|then|after that|finally"
  r"|lastly)\b",
  re.I,
)

_LEADING = frozenset(
  "the answer statement claim that this it is be so well it's that's".split()
)
# What a change of mind may begin with.
_TURNING = frozenset(
  "but however actually wait or and maybe correct right i mean think".split()
)
_SENTENCE_END = re.compile(r"[.!?\n]+")

# Said of oneself: "if you can't open it" refuses nothing.
_REFUSAL = re.compile(
  r"\b(?:i|we)(?:'m| am| be)?(?: \w{1,12}){0,2} (?:can't|cannot|can not|won't"
  r"|will not|unable to|not able to|must not|not allowed to|not going to)"
  r"(?: \w{1,12}){0,2} (?:help|assist|do|write|answer|provide|comply|give|share"
  r"|explain|tell|open|fulfill|discuss|talk)\b"
  r"|\b(?:i|we)(?: \w{1,12}){0,2} (?:refuse|decline)\b"
  r"|\bsorry,? but\b"
  r"|\bagainst my (?:rules|guidelines|policy)\b"
)


def numbers(text: str) -> list[int]:
  """Lists all whole numbers of up to 15 digits, in order."""
  text = _THOUSANDS.sub("", text)
  return [int(n) for n in _NUMBER.findall(text)]


def answer_number(text: str) -> int | None:
  """Finds the number that a text gives as its answer, or None.

  It is the last one after "is", "=", "answer" and the like. Without such a word
  it is the only one there is.
  """
  values = numbers(text)
  if not values or len(values) > _MAX_NUMBERS:
    return None
  text = _THOUSANDS.sub("", text)
  candidates = _NAMED_NUMBER.findall(text)
  if candidates:
    return int(candidates[-1])
  return values[0] if len(set(values)) == 1 else None


def find_option(text: str, pair: Collection[int], larger: bool) -> set[int]:
  """Finds what a text says is the larger, or the smaller, of two numbers.

  These are numbers that it compares ("13 is larger than 50" says that 50 is the
  smaller) or gives both ("is 13 and 50"). Without either it is the text's
  `answer_number`.

  Args:
    text: the completion.
    pair: the two numbers.
    larger: whether the larger one was asked for.

  Returns:
    The numbers that the text says: none, one or both.
  """
  text = _THOUSANDS.sub("", text)
  options = set()
  for number, comparative in _COMPARED.findall(text):
    names_answer = bool(comparative) == larger
    options |= {int(number)} if names_answer else set(pair) - {int(number)}
  text = _COMPARED.sub(" ", text)
  candidates = _NAMED_NUMBER.findall(text)
  candidates += [n for two in _TWO_NUMBERS.findall(text) for n in two]
  mentions = set(pair).intersection(map(int, candidates))
  if options or mentions == set(pair):
    return options | mentions
  answer = answer_number(text)
  return set() if answer is None else {answer}


def letter(text: str) -> str | None:
  """Finds the option (A to D) that a text picks.

  It reads "B", "(b)", "B) 42", "b. 42", "The answer is B" and "answer: b".

  Returns:
    The letter; None if the text picks none, "" if it names more than one.
  """
  text = text.replace("*", "")
  letters = {c.upper() for c in _LETTER.findall(text)}
  letters |= {c.upper() for c in _NAMED_LETTER.findall(text)}
  if text.strip(" \n.()").upper() in ("A", "B", "C", "D"):
    letters.add(text.strip(" \n.()").upper())
  if len(letters) > 1:
    return ""
  return letters.pop() if letters else None


def first_of(text: str, groups: Mapping[str, Collection[str]]) -> str:
  """Finds the group of the first word, but for words like "the answer is".

  Args:
    text: the completion.
    groups: the words of each group, such as "yes" and "no".

  Returns:
    The group. "both" if a word of another group follows in that sentence or
      begins a later one, as in "Yes. Actually, no."; "neither" if the first
      word is in no group. Within a later sentence such a word is no answer:
      "False. While it's true ..."
  """
  group_of = {w: name for name, group in groups.items() for w in group}
  sentences = map(scorers.words, _SENTENCE_END.split(scorers.fold_case(text)))
  answers = [s for s in sentences if not _LEADING.issuperset(s)]
  if not answers:
    return "neither"
  first = group_of.get(_first_word_outside(answers[0], _LEADING))
  if first is None:
    return "neither"
  answer_groups = {group_of[w] for w in answers[0] if w in group_of}
  for sentence in answers[1:]:
    fillers = (_LEADING | _TURNING) - group_of.keys()
    answer_groups.add(
      group_of.get(_first_word_outside(sentence, fillers), first)
    )
  return first if answer_groups == {first} else "both"


def _first_word_outside(
  tokens: Collection[str], fillers: Collection[str]
) -> str:
  """Returns the first word that is no filler, or ""."""
  return next((w for w in tokens if w not in fillers), "")


def refuses(text: str) -> bool:
  """Returns whether a text says that it will not do what it was asked."""
  return _REFUSAL.search(scorers.fold_case(text)) is not None


def num_items(text: str) -> int:
  """Counts the numbered steps that a text lists, on lines or in a row."""
  return max(len(_ITEM.findall(text)), len(_INLINE_ITEM.findall(text)))


def gives_steps(text: str) -> bool:
  """Returns whether a text lists two steps, by numbers or by "first, next"."""
  if num_items(text) >= 2:
    return True
  return len({word.casefold() for word in _SEQUENCER.findall(text)}) >= 2


def lines(text: str) -> list[str]:
  """Splits a text into lines with words; " / " parts lines too, as in verse."""
  parts = text.replace(" / ", "\n").splitlines()
  return [p.strip() for p in parts if scorers.words(p)]
