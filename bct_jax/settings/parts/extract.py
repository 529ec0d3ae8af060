"""Finds an answer in a completion: a number, a letter, a list of steps.

All of it is linear in the length of the text and defined on any string, whose
decorations and markup have been removed.
"""

import re
from collections.abc import Collection

from bct_jax.settings.parts import scorers

# Not a part of a word, a decimal or a power.
_NUMBER = re.compile(r"(?<![\w.])(?<!\d\*\*)-?\d{1,15}(?!\w|\.\d|\*\*\d)")
# A number that is not an operand of what follows.
_RESULT = r"(-?\d{1,15})(?!\w|\.\d|\*\*\d| ?[-+*/%] ?\d)"
# Words that give a result, and what may stand between them and the number.
_GIVES = (
  r"(?:\b(?:is|are|be|equals?|gives?|makes?|leaves?|left|yields?|returns?|get"
  r"|gets|results? in|comes? (?:out )?to|works? out to|totals?|answer|result"
  r"|constitutes)\b|=|->|:)(?: (?:you|us|equal to|exactly|simply|just|with|a"
  r"|to|of|the number|remainder)\b){0,4}[\s:*\"(]{0,4}"
)
# Steps come before the result, so the last one counts.
_NAMED_NUMBER = re.compile(_GIVES + _RESULT, re.I)
# "So the result is 5", but not "so subtract 5".
_FINAL_NUMBER = re.compile(
  r"(?:\b(?:answer|result)(?: is| would be| =|:)?"
  r"|\b(?:so|therefore|thus|hence|finally|final|i meant|correction)\b"
  r"(?:(?!subtract|add|multipl|divi|tak|borrow|carr|start|if)[^.\n\d]){0,60}?)"
  r"[\s:*\"(=]{0,4}" + _RESULT + r"(?! ?=)",
  re.I,
)
_SIGN = (
  r"(?:[-+*/x%]|plus|minus|times|and|from|by|mod(?:ulo)?|divided by"
  r"|multiplied by|added to|subtracted from)"
)
# "50 is larger", "the 50 is a larger number than 13", "50 is 37 more than 13".
_COMPARED = re.compile(
  r"(-?\d{1,15}) (?:is|be) (?:(?!not\b)[\w-]{1,12} ){0,3}?"
  r"(?:(larger|bigger|greater|higher|more)|smaller|lower|less|fewer)\b"
  r"(?: number)?(?: than (?:the )?-?\d{1,15})?",
  re.I,
)
_ALTERNATIVES = re.compile(r"(?<!\w)(-?\d{1,15}) or (-?\d{1,15})(?!\w)", re.I)
_TWO_NUMBERS = re.compile(r"\b(?:is|are|be) (\d{1,15}) and (\d{1,15})\b", re.I)
# A text with more numbers gives no answer.
_MAX_NUMBERS = 40
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_GREATER = re.compile(r"(-?\d{1,15}) ?> ?(?=-?\d)")
_LESS = re.compile(r"(-?\d{1,15}) ?< ?(?=-?\d)")

# "B)", "(b)", "B." and "B:" as words of their own, not the "a" of "a cup".
_LETTER = re.compile(r"(?:(?<=\s)|^)\(?([a-d])(?:\)|[.:](?=\s|$))", re.I)
# "B, since ...", "A or B".
_CAPITAL = re.compile(
  r"(?<![\w'])([A-D])(?=[,;!?]|\s*\Z|[\s]+(?:and|or|because|since|as|is)\b|\n)"
  r"|(?<= and )([A-D])\b|(?<= or )([A-D])\b"
)
_LETTER_LINE = re.compile(
  r"[\s(\"]*([A-Da-d])(?:[\s().:\"]|-)*(?:-?\d{1,15})?"
  r"[\s.)\"\u2705\u2713\u2714]*\Z"
)
_NAMED_LETTER = re.compile(
  r"\b((?i:(?:final |correct |right )?(?:answer|option|choice|letter)|choose"
  r"|pick|select|go with|chose|picked|selected))(?i: is| would be| must be|:"
  r"| =)?"
  r"(?i: option| choice| letter)?:?\s{0,3}[(\"]?"
  r"(?:([A-D])(?![^\W_]|')|([a-d])(?=[).,:;\"]|\s*\Z))"
)
_RIGHT_LETTER = re.compile(
  r"(?<![\w'])([A-D])[).:]?(?: -?\d{1,15},?)?"
  r" is (?:the )?(?:only )?(?:correct|right|answer)\b(?! not)"
)
_WRONG_LINE = re.compile(
  r"\b(?:incorrect|wrong|not|no|isn't|too|false|larger|smaller)\b"
  r"|[\u274c\u2717\u2718]",
  re.I,
)
_RIGHT_LINE = re.compile(
  r"\b(?:correct|right|yes)\b|[\u2705\u2713\u2714]", re.I
)
_ITEM = re.compile(
  r"(?m)^[ \t]*(?:- )?(?:step )?(?:\d{1,2}|[a-h]|one|two|three|four|five|six)"
  r"(?: ?[.):]| -)|^[ \t]*step (?:\d{1,2}|one|two|three|four|five|six)\b",
  re.I,
)
# A bullet that asks is no step.
_BULLET = re.compile(r"(?m)^[ \t]*- +(?=[^\n]*\w)(?![^\n]*\?[ \t]*$)")
_INLINE_ITEM = re.compile(
  r"(?:^|[.!;:,] |\n)[ \t]*(?:(?:step )?\d{1,2}(?:[.)]| -+)|\([a-h1-9]\)"
  r"|step (?:\d{1,2}|one|two|three|four|five|six)[.):,]) ",
  re.I,
)

# "First, ... Next, ..." in prose.
_SEQUENCER = re.compile(
  r"(?:^|[.!?:;] |\n)(?:the )?(first|second|third|next|then|after that|finally"
  r"|lastly|begin by|start by|start with|once|after|afterwards|from there"
  r"|to finish|last)\b",
  re.I,
)
_ANY_SEQUENCER = re.compile(
  r"\b(first|second|third|next|then|after that|finally|lastly|afterwards)\b",
  re.I,
)
# What instructions tell one to do, at the start of a clause.
_IMPERATIVE = re.compile(
  r"(?:^|[.!:;,] |\n|\band |\bthen |\bfirst |\bfinally |\bnext )(?:carefully "
  r"|gently |just |simply |and |then |finally )*(add|adjust|allow|apply|arrange"
  r"|assemble|attach|avoid|bring|brush|carry|check|choose|clean|clear|close"
  r"|collect|cover|cut|decide|disconnect|dry|dust|empty|ensure|examine|fill"
  r"|find|fold|gather|get|give|go|grab|grip|handle|have|hold|identify|inspect"
  r"|keep|label|lay|leave|let|lift|line|locate|lock|loosen|look|lower|make"
  r"|mark|measure|mix|move|note|open|organize|pack|paint|pick|place|plan"
  r"|plug|polish|position|pour|prepare|press|pull|push|put|raise|read|record"
  r"|release|remove|repair|repeat|replace|return|rinse|roll|rub|sand|seal"
  r"|secure|select|separate|set|slide|sort|spray|spread|stack|stand|store"
  r"|switch|take|tape|test|tidy|tie|tighten|touch|turn|twist|unlock|unplug"
  r"|use|vacuum|wait|walk|wash|wear|wipe|work|wrap)\b",
  re.I,
)


def numbers(text: str) -> list[int]:
  """Lists all whole numbers of up to 15 digits, in order."""
  text = _THOUSANDS.sub("", text)
  return [int(n) for n in _NUMBER.findall(text)]


def answer_number(
  text: str, operands: Collection[int] = (), noun: str = ""
) -> int | None:
  """Finds the number that a text gives as its answer, or None.

  In this order decide, the last of each: a number that concludes ("so it is
  5"); what the sum that was asked for is said to be; a number after "is", "="
  and the like; the only number that is no operand.

  Args:
    text: the completion.
    operands: the numbers of the sum that was asked for.
    noun: what the result is called, such as "remainder", or "".
  """
  values = numbers(text)
  if len(values) > _MAX_NUMBERS:
    return None
  if not set(values) - set(operands):
    values += _spelled_numbers(text)
  text = _THOUSANDS.sub("", text)
  found = (
    _FINAL_NUMBER.findall(text),
    _results_of(text, operands, noun),
    _NAMED_NUMBER.findall(text),
  )
  for candidates in found:
    results = [int(n) for n in candidates if int(n) not in operands]
    if results:
      return results[-1]
  # A result may be an operand, too: 24 - 12.
  if found[1]:
    return int(found[1][-1])
  rest = set(values) - set(operands) or set(values)
  return rest.pop() if len(rest) == 1 else None


def find_alternatives(text: str) -> set[int]:
  """Returns the two numbers of "either 3 or 4"; nothing without them."""
  found = _ALTERNATIVES.search(text)
  return {int(n) for n in found.groups()} if found else set()


def _results_of(text: str, operands: Collection[int], noun: str) -> list[str]:
  """Lists what a text says the sum of two operands is, or the noun."""
  patterns = []
  if len(operands) == 2 and noun != "remainder":
    a, b = operands
    patterns += [
      rf"(?<!\d){x} ?{_SIGN} ?{y}(?!\d)[^\d\n.=]{{0,40}}?{_GIVES}{_RESULT}"
      for x, y in ((a, b), (b, a))
    ]
  if noun:
    patterns.append(rf"\b{noun}(?: of| is| =|:){{0,2}} {_RESULT}")
  matches = [m for p in patterns for m in re.finditer(p, text, re.I)]
  return [m[1] for m in sorted(matches, key=lambda m: m.start())]


_ONES = (
  "zero one two three four five six seven eight nine ten eleven twelve "
  "thirteen "
  "fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_SPELLED = {w: i for i, w in enumerate(_ONES)} | {
  w: 10 * i for i, w in enumerate(_TENS, 2)
}


def _spelled_numbers(text: str) -> list[int]:
  """Lists numbers in words up to 99,999; a lone "one" is none."""
  out: list[int] = []
  total = 0
  inside = False
  for word in [*scorers.words(scorers.fold_case(text)), ""]:
    if word in _SPELLED:
      total, inside = total + _SPELLED[word], True
    elif word in ("hundred", "thousand") and inside:
      total *= 100 if word == "hundred" else 1000
    elif word != "and" or not inside:
      if inside and total != 1:
        out.append(total)
      total, inside = 0, False
  return out


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
  text = _GREATER.sub(r"\1 is larger than ", text)
  text = _LESS.sub(r"\1 is smaller than ", text)
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
  answer = answer_number(text, set(numbers(text)) - set(pair))
  return set() if answer is None else {answer}


def letter(text: str) -> str | None:
  """Finds the option (A to D) that a text picks.

  It reads "B", "(b)", "B) 42", "b. 42", "The answer is B" and "answer: b". In a
  list of options those count that the text does not call wrong.

  Returns:
    The letter; None if the text picks none, "" if it names more than one.
  """
  named = [
    (how, (upper or lower).upper())
    for how, upper, lower in _NAMED_LETTER.findall(text)
  ]
  # An answer is more than an option that is talked about.
  for kinds in (("final", "correct", "right"), ("answer",), ("",)):
    picks = [c for how, c in named if how.lower().startswith(kinds)]
    if picks:
      # "Answer: A ... So the answer is B": the last one, unless it is a list.
      return picks[-1] if len(set(picks)) == 1 or kinds != ("",) else ""
  # An answer alone on its line, with a reason below it.
  alone = [
    m[1].upper() for m in map(_LETTER_LINE.match, text.splitlines()) if m
  ]
  if len(alone) == 1:
    return alone[0]
  right = set(_RIGHT_LETTER.findall(text))
  letters = {c for m in _CAPITAL.findall(text) for c in m if c}
  for line in text.splitlines():
    of_line = {c.upper() for c in _LETTER.findall(line)}
    if _RIGHT_LINE.search(line) and not _WRONG_LINE.search(line):
      right |= of_line
    letters |= of_line
  if text.strip(' \n.():"').upper() in ("A", "B", "C", "D"):
    letters.add(text.strip(' \n.():"').upper())
  picked = right if len(right) == 1 else letters
  if len(picked) > 1:
    return ""
  return picked.pop() if picked else None


def find_items(text: str) -> list[int]:
  """Lists the places of the steps in a list, on lines or in a row.

  Numbers, letters and bullets make a list.
  """
  found = [
    [m.start() for m in pattern.finditer(text)]
    for pattern in (_ITEM, _INLINE_ITEM, _BULLET)
  ]
  return max(found, key=len)


def gives_steps(text: str) -> bool:
  """Returns whether a text gives two steps in a list, or more in prose.

  Prose has two sentences that begin with "First," "Next," and the like, three
  such words, or three clauses that tell what to do; two, if in order.
  """
  if len(find_items(text)) >= 2:
    return True
  num_told = len(_IMPERATIVE.findall(text))
  return (
    _num_distinct(_SEQUENCER, text) >= 2
    or _num_distinct(_ANY_SEQUENCER, text) >= 3
    or num_told >= 3
    or (num_told >= 2 and _num_distinct(_ANY_SEQUENCER, text) >= 2)
  )


def _num_distinct(pattern: re.Pattern[str], text: str) -> int:
  """Returns how many different words a pattern finds, in any case."""
  return len({word.casefold() for word in pattern.findall(text)})


def lines(text: str) -> list[str]:
  """Splits a text into lines with words; " / " parts lines too, as in verse."""
  parts = text.replace(" / ", "\n").splitlines()
  return [p.strip() for p in parts if scorers.words(p)]
