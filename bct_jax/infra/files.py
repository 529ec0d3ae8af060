"""Reads and writes the files of a run.

Whole files are written beside their place and renamed, so that a kill leaves
the old file or the new one. JSON lines are appended: a kill can cut the last
line, which readers leave out.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def _dumps(value: Any, indent: int | None = None) -> str:
  """Writes a value as JSON text."""
  # ASCII escapes keep lone surrogates and NUL of generated text readable by
  # every parser; NaN is refused since it is not JSON.
  return json.dumps(value, ensure_ascii=True, allow_nan=False, indent=indent)


def digest(value: Any) -> str:
  """Returns the hex SHA-256 of a JSON value, whatever the order of its keys."""
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
  """Writes a file whole or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  # Not the process id, which two containers on one file system may share.
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
  try:
    with open(temporary, "wb") as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write_text(path: Path, text: str) -> None:
  """Writes a file in UTF-8, whole or not at all."""
  write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
  """Writes JSON whole or not at all."""
  write_text(path, _dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
  """Reads JSON.

  Raises:
    ValueError: the file is missing or broken; the message names it.
  """
  try:
    return json.loads(path.read_text("utf-8"))
  except FileNotFoundError:
    raise ValueError(f"{path} is missing") from None
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise ValueError(f"{path}: not readable as JSON: {e}") from None


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes JSON lines whole or not at all."""
  write_text(path, "".join(_dumps(r) + "\n" for r in rows))


def append_line(path: Path, row: Mapping[str, Any]) -> None:
  """Adds one line; a kill can leave the last line without its newline."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with open(path, "a", encoding="utf-8") as f:
    f.write(_dumps(row) + "\n")


def insert_line(path: Path, row: Mapping[str, Any]) -> None:
  """Adds one line in order of `step`, behind those of the same step."""
  rows = read_lines(path)
  if any(r["step"] > row["step"] for r in rows):
    write_lines(path, sorted([*rows, row], key=lambda r: r["step"]))
  else:
    append_line(path, row)


def read_lines(path: Path) -> list[dict[str, Any]]:
  """Reads the rows of a JSON lines file; returns [] if there is no file.

  A last line without newline was cut by a kill and is left out.

  Raises:
    ValueError: any other line is broken; the message names file and line.
  """
  if not path.exists():
    return []
  rows = []
  lines = path.read_text("utf-8").split("\n")
  for number, line in enumerate(lines[:-1], 1):
    try:
      rows.append(json.loads(line))
    except json.JSONDecodeError as e:
      raise ValueError(f"{path}:{number}: not JSON: {e}") from None
  return rows


def drop_after(path: Path, step: int) -> list[dict[str, Any]]:
  """Drops the rows after `step`, which a resumed run makes again.

  Returns:
    The rows that stay.
  """
  rows = [r for r in read_lines(path) if r["step"] <= step]
  if path.exists():
    write_lines(path, rows)
  return rows
