"""Reads and writes the files of a run.

Whole files are written beside their place and renamed, so that a kill leaves
the old file or the new one. JSON lines are appended: a kill can cut the last
line, which readers leave out. What is written below a tracked folder is
remembered, and compared when it is read; see ledger.py.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bct_jax.infra import ledger, remote_runs


def _dumps(value: Any, indent: int | None = None) -> str:
  """Writes a value as JSON text."""
  # ASCII escapes keep lone surrogates and NUL of generated text readable by
  # every parser; NaN is refused since it is not JSON.
  return json.dumps(value, ensure_ascii=True, allow_nan=False, indent=indent)


def digest(value: Any) -> str:
  """Returns the hex SHA-256 of a JSON value, whatever the order of its keys."""
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def write_bytes(path: Path, content: bytes, grows: bool = False) -> None:
  """Writes a file whole or not at all.

  Args:
    path: of the file; its folder is made.
    content: of the file.
    grows: whether lines will be appended.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  # Not the process id, which two containers on one file system may share.
  temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
  try:
    with open(temporary, "wb") as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    ledger.before_write(path, content, grows)
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  remote_runs.wrote(path)


def write_text(path: Path, text: str) -> None:
  """Writes a file in UTF-8, whole or not at all."""
  write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
  """Writes JSON whole or not at all."""
  write_text(path, _dumps(value, indent=1) + "\n")


def read_json(path: Path) -> Any:
  """Reads JSON.

  Raises:
    ValueError: the file is missing, broken or damaged; the message names it.
  """
  content = ledger.read_bytes(path)
  ledger.check(path, content)
  if content is None:
    raise ValueError(f"{path} is missing")
  try:
    return json.loads(content.decode("utf-8"))
  except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as e:
    raise ValueError(f"{path}: not readable as JSON: {e}") from None


def read_object(path: Path) -> dict[str, Any]:
  """Reads a JSON object from a file of a model folder.

  Raises:
    ValueError: the file is missing, no regular one, or broken; the message
      names it and the line.
  """
  if path.exists() and not path.is_file():
    raise ValueError(f"{path}: not a regular file")
  try:
    value = json.loads(path.read_text("utf-8"))
  except FileNotFoundError:
    raise ValueError(f"{path} is missing: not a Hugging Face folder") from None
  except UnicodeDecodeError as e:
    raise ValueError(f"{path}: not UTF-8 text: {e.reason}") from None
  except json.JSONDecodeError as e:
    raise ValueError(f"{path}:{e.lineno}: not JSON: {e.msg}") from None
  except RecursionError:
    raise ValueError(f"{path}: not JSON: nested too deeply") from None
  if not isinstance(value, dict):
    raise ValueError(f"{path}: an object is needed, found {value!r:.60}")
  return value


def read_json_or_none(path: Path) -> Any:
  """Reads JSON as `read_json` does; returns None if there is no such file."""
  content = ledger.read_bytes(path)
  ledger.check(path, content)
  return None if content is None else read_json(path)


def read_json_or_same(path: Path, value: Any) -> Any:
  """Reads JSON as `read_json_or_none` does, and mends the file if it can.

  Args:
    path: of the file.
    value: what this command would write there. A damaged file gets it, if that
      is what was written there last.
  """
  try:
    return read_json_or_none(path)
  except ledger.DamagedFile:
    content = (_dumps(value, indent=1) + "\n").encode()
    if not ledger.was_written(path, content):
      raise
    write_bytes(path, content)
    return json.loads(content)


def write_lines(
  path: Path, rows: Iterable[Mapping[str, Any]], grows: bool = False
) -> None:
  """Writes JSON lines whole or not at all; see `write_bytes`."""
  text = "".join(_dumps(r) + "\n" for r in rows)
  write_bytes(path, text.encode(), grows)


def append_line(path: Path, row: Mapping[str, Any], sync: bool = True) -> None:
  """Adds one line; a kill can leave the last line without its newline.

  Args:
    path: of the file, in a folder that is there.
    row: of the line.
    sync: whether the line is on the disk, and remembered, when this returns;
      otherwise `sync_lines` does it for all lines so far.
  """
  line = (_dumps(row) + "\n").encode()
  if sync:
    before = ledger.read_bytes(path) or b""
    ledger.before_write(path, before + line, grows=True)
  try:
    with open(path, "ab") as f:
      f.write(line)
      if sync:
        f.flush()
        os.fsync(f.fileno())
  except FileNotFoundError:
    raise ledger.gone(path.parent) from None
  remote_runs.wrote(path, wait=not sync)


def sync_lines(path: Path) -> None:
  """Flushes a file of appended lines to the disk, and remembers them."""
  if not path.exists():
    return
  with open(path, "rb") as f:
    os.fsync(f.fileno())
    ledger.before_write(path, f.read(), grows=True)
  remote_runs.wrote(path)


def insert_line(path: Path, row: Mapping[str, Any]) -> None:
  """Adds one line in order of `step`, behind those of the same step."""
  rows = read_lines(path)
  if any(r["step"] > row["step"] for r in rows):
    rows = sorted([*rows, row], key=lambda r: r["step"])
    write_lines(path, rows, grows=True)
  else:
    append_line(path, row)


def read_lines(path: Path) -> list[dict[str, Any]]:
  """Reads the rows of a JSON lines file; returns [] if there is no file.

  A last line without newline was cut by a kill and is left out.

  Raises:
    ValueError: any other line is broken; the message names file and line.
  """
  content = ledger.read_bytes(path)
  ledger.check(path, content)
  rows = []
  try:
    lines = (content or b"").decode("utf-8").split("\n")
  except UnicodeDecodeError as e:
    raise ValueError(f"{path}: not UTF-8 at byte {e.start}") from None
  for number, line in enumerate(lines[:-1], 1):
    try:
      rows.append(json.loads(line))
    except (json.JSONDecodeError, RecursionError) as e:
      raise ValueError(f"{path}:{number}: not JSON: {e}") from None
  return rows


def drop_after(path: Path, step: int) -> list[dict[str, Any]]:
  """Drops the rows after `step`, which a resumed run makes again.

  Returns:
    The rows that stay.
  """
  rows = [r for r in read_lines(path) if r["step"] <= step]
  if path.exists():
    write_lines(path, rows, grows=True)
  return rows


def delete(path: Path) -> None:
  """Deletes a file if it is there."""
  if path.exists():
    ledger.before_write(path, None)
    path.unlink(missing_ok=True)
    remote_runs.deleted(path)


def delete_folder(path: Path) -> None:
  """Deletes a folder if it is there."""
  shutil.rmtree(path, ignore_errors=True)
  remote_runs.deleted(path)
