"""Checks a text for one thing: words, a pattern, a number, a language ...

A check is a frozen dataclass whose fields are its options; the first one is
what it looks for. It is called with a row of the user's file and a text.
"""

import abc
import copy
import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from bct_jax.settings.parts import code, extract, markup

Row = Mapping[str, Any]  # a row of a file of the user's, as it stands there


class CheckError(ValueError):
  """Is raised when a row lacks what a check compares with."""


@dataclasses.dataclass(frozen=True)
class Check(abc.ABC):
  """Compares a text with `value`, or with what the row has in `field`.

  Attributes:
    value: what to look for; of a list any one is enough.
    field: the field of the row that has it, in place of `value`. Dots lead
      into objects: "labels.answer".
  """

  value: Any = None
  field: str = ""

  def __post_init__(self):
    if (self.value is None) == (not self.field):
      raise ValueError('needs "value", or "field" for one of the row')
    for value in [] if self.value is None else _as_list(self.value):
      self.require(value)

  def __call__(self, row: Row, text: str) -> bool:
    """Returns whether the text is as the check asks.

    Raises:
      CheckError: the row lacks the field, or the field has a wrong value.
    """
    return any(self.holds(value, text) for value in self.wanted(row))

  def wanted(self, row: Row) -> list[Any]:
    """Lists the values that are looked for in answers to a row."""
    if not self.field:
      return _as_list(self.value)
    value: Any = row
    for name in self.field.split("."):
      value = value.get(name) if isinstance(value, Mapping) else None
    if value is None or value == "":
      raise CheckError(f"the row has no field {self.field!r}")
    for v in _as_list(value):
      try:
        self.require(v)
      except ValueError as e:
        raise CheckError(f"its field {self.field!r}: {e}") from None
    return _as_list(value)

  def require(self, value: Any) -> None:
    """Raises ValueError unless a value can be looked for; default: text."""
    if not isinstance(value, str) or not value.strip():
      raise ValueError(f"must be text that is not blank, not {value!r}")

  @abc.abstractmethod
  def holds(self, value: Any, text: str) -> bool:
    """Returns whether a text is as one value asks."""


@dataclasses.dataclass(frozen=True)
class Regex(Check):
  """Finds a regular expression of Python's `re` anywhere in the text.

  Flags stand in the pattern: "(?i)" ignores case, "(?s)" lets a dot match ends
  of line.
  """

  def require(self, value: Any) -> None:
    super().require(value)
    try:
      re.compile(value)
    except re.error as e:
      raise ValueError(f"{value!r} is no regular expression: {e}") from None

  def holds(self, value: Any, text: str) -> bool:
    return re.search(value, text) is not None


@dataclasses.dataclass(frozen=True)
class Contains(Check):
  """Finds a text in the text, whole words alone: "cat" is not in "concat".

  Blanks and ends of line are alike.

  Attributes:
    case: whether upper and lower case differ.
  """

  case: bool = False

  def holds(self, value: Any, text: str) -> bool:
    pattern = re.escape(_fold(value, self.case))
    return bool(re.search(rf"(?<!\w){pattern}(?!\w)", _fold(text, self.case)))


@dataclasses.dataclass(frozen=True)
class Equals(Check):
  """Compares the whole text, but for markup, quotes and the final mark.

  Blanks and ends of line are alike.

  Attributes:
    case: whether upper and lower case differ.
  """

  case: bool = False

  def holds(self, value: Any, text: str) -> bool:
    return self._core(value) == self._core(text)

  def _core(self, text: str) -> str:
    """Returns what is compared of a text."""
    plain = _fold(markup.strip_markup(text), self.case)
    return plain.strip("\"'\u201c\u201d ").rstrip(".!? ").strip("\"' ")


@dataclasses.dataclass(frozen=True)
class Choice(Check):
  """Compares the option that the text picks, a letter from A to D.

  "B", "(b)", "B) 42" and "the answer is B" pick B.
  """

  def require(self, value: Any) -> None:
    if not isinstance(value, str) or value.upper() not in tuple("ABCD"):
      raise ValueError(f"must be a letter from A to D, not {value!r}")

  def holds(self, value: Any, text: str) -> bool:
    return extract.letter(text) == value.upper()


_NUMBER = re.compile(
  r"(?<![\w.])[-\u2212]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
  r"(?:[eE][-+]?\d{1,3})?(?![\w])"
)


@dataclasses.dataclass(frozen=True)
class Number(Check):
  r"""Compares the last number of the text, or that in the last \boxed{}.

  Attributes:
    tolerance: the largest difference that is no difference.
  """

  tolerance: float = 0.0

  def require(self, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
      raise ValueError(f"must be a number, not {value!r}")
    if isinstance(value, str) and not _NUMBER.fullmatch(value.strip()):
      raise ValueError(f"must be a number, not {value!r}")
    if not math.isfinite(_number(value)):
      raise ValueError(f"must be a finite number, not {value!r}")

  def holds(self, value: Any, text: str) -> bool:
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    found = _NUMBER.findall(boxed[-1] if boxed else text)
    if not found:
      return False
    return abs(_number(found[-1]) - _number(value)) <= self.tolerance


@dataclasses.dataclass(frozen=True)
class JsonPath(Check):
  """Reads a value of the JSON in the text and compares it.

  The JSON is the whole text, or the first object or list in it. Numbers compare
  as numbers, all else exactly.

  Attributes:
    value: JSON, or "*" for any value that is there.
    path: names with dots and places in brackets: "$.calls[0].name".
  """

  path: str = "$"

  def __post_init__(self):
    super().__post_init__()
    _path_steps(self.path)

  def require(self, value: Any) -> None:
    if not isinstance(value, (str, int, float, bool)):
      raise ValueError(f"must be text, a number, true or false, not {value!r}")

  def holds(self, value: Any, text: str) -> bool:
    try:
      found = _first_json(text)
      for step in _path_steps(self.path):
        found = found[step]
    except (ValueError, LookupError, TypeError, RecursionError):
      return False
    if value == "*":
      return True
    # True is 1 for Python, and not for JSON.
    same_kind = isinstance(found, bool) == isinstance(value, bool)
    return same_kind and found == value


@dataclasses.dataclass(frozen=True)
class CodeLanguage(Check):
  """Compares the language of the code in the text.

  Python and JavaScript are told by their syntax, of functions. Other languages
  are told by what stands behind the opening fence: "```rust".
  """

  def holds(self, value: Any, text: str) -> bool:
    name = value.strip().lower()
    if name in ("python", "javascript"):
      return code.language_of_code(text) in (name, "both")
    return name in map(str.lower, re.findall(r"```[ \t]*([\w+#-]+)", text))


@dataclasses.dataclass(frozen=True)
class Language(Check):
  """Compares the natural language of the text, an ISO 639-1 code like "es".

  The package py3langid tells them apart. It needs a sentence: a word or two may
  be of several languages.

  Attributes:
    among: codes, with blanks between, of the languages that are possible. Fewer
      are told apart better. "" is all.
  """

  among: str = ""

  def __post_init__(self):
    super().__post_init__()
    known, among = _identifier("").labels, self.among.split()
    for name in among:
      if name not in known:
        raise ValueError(f"among: {name!r} is not one of {sorted(known)}")
    if self.value is not None and among and self.value not in among:
      raise ValueError(f'"among" = {self.among!r} must have {self.value!r}')

  def require(self, value: Any) -> None:
    known = _identifier("").labels
    if value not in known:
      raise ValueError(f"{value!r} is not one of {sorted(known)}")

  def holds(self, value: Any, text: str) -> bool:
    plain = markup.strip_markup(text)
    return bool(plain.strip()) and (
      _identifier(self.among).classify(plain)[0] == value
    )


@functools.cache
def _identifier(among: str) -> Any:
  """Loads what tells languages apart.

  Raises:
    ValueError: the package is not installed.
  """
  try:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier
  except ImportError:
    raise ValueError(
      "language needs the package py3langid: pip install 'bct_jax[language]'"
    ) from None
  if not among:
    return LanguageIdentifier.from_model_file(MODEL_FILE)
  identifier = copy.copy(_identifier(""))  # which takes half a second to load
  identifier.set_languages(among.split())
  return identifier


CHECKS: dict[str, type[Check]] = {
  "regex": Regex,
  "contains": Contains,
  "equals": Equals,
  "choice": Choice,
  "number": Number,
  "json_path": JsonPath,
  "code_language": CodeLanguage,
  "language": Language,
}


def _as_list(value: Any) -> list[Any]:
  """Returns the values of a list, or the one that there is."""
  return list(value) if isinstance(value, (list, tuple)) else [value]


def _fold(text: str, case: bool) -> str:
  """Joins words by single blanks; lower case unless case counts."""
  plain = " ".join(text.replace("\u2019", "'").split())
  return plain if case else plain.casefold()


def _number(value: Any) -> float:
  """Reads a number as `_NUMBER` finds it."""
  text = str(value).strip().replace(",", "").replace("\u2212", "-")
  return float(text)


def _path_steps(path: str) -> list[str | int]:
  """Splits a path into names and places.

  Raises:
    ValueError: it is none.
  """
  step = re.compile(r"\.([\w-]+)|\[(\d+)\]|\[['\"]([^'\"]+)['\"]\]")
  rest = path.removeprefix("$")
  if rest and rest[0] not in ".[":
    rest = f".{rest}"
  out: list[str | int] = []
  while rest:
    found = step.match(rest)
    if found is None:
      raise ValueError(
        f'"path" = {path!r}: must be names and places, as "$.calls[0].name"'
      )
    out.append(int(found[2]) if found[2] else found[1] or found[3])
    rest = rest[found.end() :]
  return out


def _first_json(text: str) -> Any:
  """Reads the JSON that a text is, or the first object or list in it.

  Raises:
    ValueError: there is none.
  """
  try:
    return json.loads(text)
  except ValueError:
    pass
  decoder = json.JSONDecoder()
  # Few braces begin JSON; a bound keeps a text full of them cheap.
  starts = [m.start() for m in re.finditer(r"[{\[]", text)][:50]
  for start in starts:
    try:
      return decoder.raw_decode(text, start)[0]
    except (ValueError, RecursionError):
      continue
  raise ValueError("no JSON")
