"""Keeps the replies of a judge in a file, so that nothing is asked twice."""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bct_jax.infra import remote_runs


class ReplyCache:
  """Keeps replies by key: a JSON line each, on the disk before it counts.

  Several processes may add to one file. A last line without its end was cut by
  a kill, is left out, and is removed before the next line is written.

  Args:
    path: of the file, which need not exist.

  Raises:
    ValueError: another line is damaged; the message names file and line.
  """

  def __init__(self, path: Path):
    self._path = path
    self._replies: dict[str, dict[str, Any]] = {}
    self._read, self._lines = 0, 0  # bytes and lines
    self.update()

  def __len__(self) -> int:
    """Returns how many replies are kept."""
    return len(self._replies)

  def get(self, key: str) -> dict[str, Any] | None:
    """Returns what was kept under a key; None if nothing was."""
    return self._replies.get(key)

  def update(self) -> None:
    """Reads what was added since, by other processes."""
    if not self._path.exists():
      return
    with open(self._path, "rb") as f:
      f.seek(self._read)
      content = f.read()
    whole = content[: content.rfind(b"\n") + 1]
    for line in whole.splitlines():
      self._lines += 1
      self._add(line)
    self._read += len(whole)

  def put(self, key: str, reply: Mapping[str, Any]) -> None:
    """Keeps a reply; returns when it is on the disk."""
    line = json.dumps({"key": key, **reply, "check": _check(key, reply)})
    self._path.parent.mkdir(parents=True, exist_ok=True)
    with open(self._path, "a+b") as f:
      fcntl.flock(f, fcntl.LOCK_EX)
      size = f.seek(0, os.SEEK_END)
      f.seek(self._read)
      torn = f.read(size - self._read)
      f.truncate(self._read + torn.rfind(b"\n") + 1)
      f.write(line.encode() + b"\n")
      f.flush()
      os.fsync(f.fileno())
    remote_runs.wrote(self._path, wait=True)
    self.update()

  def _add(self, line: bytes) -> None:
    """Adds the reply of a line.

    Raises:
      ValueError: the line is damaged.
    """
    try:
      row = json.loads(line)
      key, check = row.pop("key"), row.pop("check")
      good = check == _check(key, row)
    except (ValueError, KeyError, AttributeError, TypeError):
      good = False
      key, row = "", {}
    if not good:
      raise ValueError(
        f"{self._path}:{self._lines}: the line is damaged; remove it, and the "
        "judge is asked again"
      )
    self._replies[key] = row


def _check(key: str, reply: Mapping[str, Any]) -> str:
  """Returns what tells whether a line is as it was written."""
  text = json.dumps([key, dict(reply)], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]
