"""Reads JSON files as checked records; errors name the file and the field."""

import json
import math
import reprlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from bct_jax.evals.schema import Rate
from bct_jax.report.read.types import ReportError

T = TypeVar("T", bound=str)


def read_text(path: Path) -> str:
  """Reads the text of a file.

  Raises:
    ReportError: the file is missing or no text; one line that names it.
  """
  try:
    return path.read_bytes().decode("utf-8")
  except FileNotFoundError:
    raise ReportError(f"{path}: missing") from None
  except UnicodeDecodeError as e:
    raise ReportError(f"{path}: not UTF-8 at byte {e.start}") from None
  except OSError as e:
    raise ReportError(f"{path}: cannot be read: {e.strerror}") from None


def read_json(path: Path) -> "Record":
  """Reads a file that holds one JSON object.

  Raises:
    ReportError: it cannot be read, or is no JSON object.
  """
  return Record(_parse(read_text(path), str(path)), str(path))


def read_lines(
  path: Path, on_torn_line: Callable[[str], object] | None = None
) -> Iterator["Record"]:
  """Reads the JSON objects of a file that has one in each line.

  Args:
    path: the file.
    on_torn_line: is called with a message if the last line was cut off, which
      is then left out. Give it only where a writer may still be at work or was
      killed; without it such a line is an error.

  Raises:
    ReportError: the file or a line cannot be read.
  """
  # A line ends at "\n" only: str.splitlines would cut at U+2028 in a text.
  lines = read_text(path).split("\n")
  ended = not lines[-1]
  if ended:
    lines.pop()
  for i, line in enumerate(lines):
    where = f"{path}:{i + 1}"
    try:
      yield Record(_parse(line, where), where)
    except ReportError:
      if on_torn_line is None or ended or i + 1 < len(lines):
        raise
      on_torn_line(f"{where}: the last line is cut off and left out")


def _parse(text: str, where: str) -> Any:
  """Parses JSON of any type.

  Args:
    text: the JSON.
    where: the place that an error names.
  """
  try:
    return json.loads(text)
  except json.JSONDecodeError as e:
    spot = f"line {e.lineno}, column {e.colno}"
    raise ReportError(f"{where}: not JSON: {e.msg} ({spot})") from None
  except (ValueError, RecursionError) as e:
    raise ReportError(f"{where}: not JSON: {e}") from None


class Record:
  """Holds a JSON object and the place in a file where it stands.

  Every getter checks the value and raises `ReportError` with the place, the
  field, what the value is and what would be right.

  Attributes:
    value: the object.
    where: the file, and the path to the object within it.
  """

  def __init__(self, value: Any, where: str):
    """Checks that the value is an object."""
    if not isinstance(value, dict):
      raise ReportError(f"{where}: should be an object, is {_describe(value)}")
    self.value: dict[str, Any] = value
    self.where = where

  def error(self, key: str, right: str) -> ReportError:
    """Makes an error about a field that should be what `right` says."""
    if key not in self.value:
      return ReportError(f"{self.where}: no field {key!r}; should be {right}")
    value = _describe(self.value[key])
    return ReportError(f"{self.where}: {key} should be {right}, is {value}")

  def has(self, key: str) -> bool:
    """Says whether the field is there and not null."""
    return self.value.get(key) is not None

  def text(self, key: str, among: tuple[str, ...] = ()) -> str:
    """Returns a string; one of `among`, unless that is empty."""
    value = self.value.get(key)
    if not isinstance(value, str) or (among and value not in among):
      raise self.error(key, " or ".join(among) or "a string")
    return value

  def choice(self, key: str, among: tuple[T, ...]) -> T:
    """Returns one of the strings `among`, as of their type."""
    return cast(T, self.text(key, among))

  def flag(self, key: str) -> bool:
    """Returns a boolean."""
    value = self.value.get(key)
    if not isinstance(value, bool):
      raise self.error(key, "true or false")
    return value

  def count(self, key: str) -> int:
    """Returns a whole number that is not negative."""
    value = self.value.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
      raise self.error(key, "a whole number, 0 or more")
    return value

  def number(self, key: str) -> float:
    """Returns a finite number."""
    value = _number(self.value.get(key))
    if value is None or not math.isfinite(value):
      raise self.error(key, "a finite number")
    return value

  def measured(self, key: str) -> float:
    """Returns a number of a training log, where null and NaN are data."""
    value = self.value.get(key)
    number = math.nan if value is None else _number(value)
    if number is None:
      raise self.error(key, "a number or null")
    return number

  def share(self, key: str) -> float:
    """Returns a number in [0, 1]."""
    value = _number(self.value.get(key))
    if value is None or not 0 <= value <= 1:
      raise self.error(key, "a number in [0, 1]")
    return value

  def interval(self, key: str) -> tuple[float, float] | None:
    """Returns [low, high]; None where the field is null or absent."""
    if not self.has(key):
      return None
    value = self.value[key]
    pair = value if isinstance(value, list) and len(value) == 2 else [None]
    low, high = _number(pair[0]), _number(pair[-1])
    if low is None or high is None or not low <= high:
      raise self.error(key, "an interval [low, high]")
    return low, high

  def numbers(self, key: str, count: int) -> list[float]:
    """Returns a list of so many finite numbers."""
    value = self.value.get(key)
    out = [_number(x) for x in value] if isinstance(value, list) else []
    known = [x for x in out if x is not None and math.isfinite(x)]
    if len(out) != count or len(known) != count:
      raise self.error(key, f"a list of {count} finite numbers")
    return known

  def open_interval(self, key: str) -> tuple[float, float] | None:
    """Returns [low, high], where null at an end says that it has no bound."""
    value = self.value.get(key)
    if isinstance(value, list) and len(value) == 2 and value != [None, None]:
      ends = (-math.inf, math.inf)
      bounds = [
        end if x is None else x for x, end in zip(value, ends, strict=True)
      ]
      return Record({**self.value, key: bounds}, self.where).interval(key)
    return self.interval(key)

  def rate(self, key: str, n: str) -> Rate:
    """Returns the share `key`, its interval `<key>_ci`, and its number `n`."""
    size = self.count(n) if self.has(n) else None
    interval = self.interval(f"{key}_ci")
    if interval and not (0 <= interval[0] and interval[1] <= 1):
      raise self.error(f"{key}_ci", "an interval within [0, 1]")
    return Rate(self.share(key), interval, size)

  def object(self, key: str) -> "Record":
    """Returns an object."""
    if not isinstance(self.value.get(key), dict):
      raise self.error(key, "an object")
    return Record(self.value[key], _join(self.where, key))

  def objects(self, key: str) -> list["Record"]:
    """Returns a list of objects."""
    value = self.value.get(key)
    if not isinstance(value, list):
      raise self.error(key, "a list of objects")
    places = [_join(self.where, f"{key}[{i}]") for i in range(len(value))]
    return [Record(v, where) for v, where in zip(value, places, strict=True)]


def _number(value: Any) -> float | None:
  """Converts a JSON number, infinite if it is too large; else returns None."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  try:
    return float(value)
  except OverflowError:
    return math.inf


def _describe(value: Any) -> str:
  """Describes a value in short text that is harmless on a terminal."""
  # The files can hold anything, and errors end up on a terminal: ascii only.
  return reprlib.repr(value).encode("ascii", "backslashreplace").decode()


def _join(where: str, key: str) -> str:
  """Adds a field to a place, such as `result.json: arms[0].curve[3]`."""
  return f"{where}.{key}" if ": " in where else f"{where}: {key}"
