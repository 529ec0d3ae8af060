"""Remembers what a run wrote into its folders, so that damage is found.

A tracked folder has a ledger, files.jsonl, with a line for each write below it:
name, size and SHA-256, and a checksum of the line itself. The line comes first,
and is flushed before the file changes. So a kill leaves a file as it was or as
its newest line says, and only the very last line of a ledger may be of a file
that does not have its content yet.

  ledger: ... evals.jsonl 4 KB | rollouts/step_8.jsonl 90 KB | evals.jsonl 6 KB
  kill before the last write: evals.jsonl has 4 KB, which is right
  otherwise it has 6 KB, or was damaged

A file that grows is right if it begins with what its newest line is about:
lines of updates come between two checkpoints, and are not remembered one by
one. Any other file is right if one of its lines fits, since several machines
may write the same organism. Functions of files.py call this module.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from bct_jax.infra import remote_runs

NAME = "files.jsonl"
ASIDE = ".damaged"  # ends the name of a folder that was set aside
# Made by any command at any time, or with checks of their own.
_FREE = ("report.html", ".partial.jsonl")


class DamagedFile(ValueError):
  """Is raised for a file of a run that is lost or not what was written.

  Attributes:
    damage: the file and what is wrong with it, without advice.
  """

  def __init__(self, damage: str, advice: str):
    super().__init__(f"{damage}: restore it, or {advice}")
    self.damage = damage


@dataclasses.dataclass(frozen=True)
class Entry:
  """Holds a line of a ledger; a deleted file has no hash."""

  file: str
  size: int
  sha256: str | None
  grows: bool = False

  @classmethod
  def of(cls, name: str, content: bytes | None, grows: bool) -> "Entry":
    """Makes the entry for a content; None is a file that is not there."""
    if content is None:
      return cls(name, 0, None)
    return cls(name, len(content), _hash(content), grows)

  def fits(self, content: bytes | None) -> bool:
    """Tells whether a file may have this content."""
    if content is None or self.sha256 is None:
      return content is None and self.sha256 is None
    if self.grows:
      return _hash(content[: self.size]) == self.sha256
    return len(content) == self.size and _hash(content) == self.sha256

  def line(self) -> str:
    """Writes the entry with the checksum of its line."""
    text = json.dumps(dataclasses.asdict(self))
    return json.dumps({**dataclasses.asdict(self), "check": _check(text)})


def _hash(content: bytes) -> str:
  """Returns the hex SHA-256."""
  return hashlib.sha256(content).hexdigest()


def _check(text: str) -> str:
  """Returns a short checksum of a line."""
  return _hash(text.encode())[:8]


def _parse(line: str) -> Entry | None:
  """Reads a line; None if it was cut or changed."""
  try:
    values: dict[str, Any] = json.loads(line)
    check = values.pop("check")
    entry = Entry(**values)
  except (ValueError, TypeError, KeyError, AttributeError):
    return None
  text = json.dumps(dataclasses.asdict(entry))
  return entry if _check(text) == check else None


class Ledger:
  """Reads and adds to the ledger of one folder."""

  def __init__(self, folder: Path):
    """Reads the ledger, if there is one."""
    self.folder, self.path = folder, folder / NAME
    self.entries: list[Entry] = []
    self.unreadable: list[int] = []  # numbers of lines, but for a cut last one
    self.exists = self.torn = False
    self.read()

  def read(self) -> None:
    """Reads what is there now."""
    try:
      text = self.path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
      self.entries, self.exists = [], False
      return
    *lines, rest = text.split("\n")
    parsed = [_parse(line) for line in lines]
    self.entries = [entry for entry in parsed if entry]
    # What a kill cut is ended by the next process, and then stands within.
    self.unreadable = [
      i for i, entry in enumerate(parsed, 1) if entry is None and lines[i - 1]
    ]
    self.exists, self.torn = True, bool(rest)

  def add(self, entry: Entry) -> None:
    """Adds a line and flushes it, unless it is the newest of the file.

    Raises:
      OSError: it cannot be written, or the folder was moved away.
    """
    there = self.path.exists()
    if there and self.exists and self.newest(entry.file) == entry:
      return
    if self.exists and not there:
      raise gone(self.path)
    self.folder.mkdir(parents=True, exist_ok=True)
    with open(self.path, "a", encoding="utf-8") as f:
      f.write(("\n" if self.torn else "") + entry.line() + "\n")
      f.flush()
      os.fsync(f.fileno())
    remote_runs.wrote(self.path, wait=True)  # goes before the file itself
    self.entries.append(entry)
    self.exists, self.torn = True, False

  def newest(self, name: str) -> Entry | None:
    """Returns the newest entry of a file."""
    return next((e for e in reversed(self.entries) if e.file == name), None)

  def damage(self, name: str, content: bytes | None) -> str | None:
    """Says in words what is wrong with the content of a file; None if it fits.

    Args:
      name: of the file, below the folder.
      content: of it; None if it is not there.
    """
    entries = [e for e in self.entries if e.file == name]
    if not entries:
      return None
    fitting = entries
    if entries[-1].grows or content is None:
      is_last = self.entries[-1] is entries[-1]  # perhaps not written yet
      fitting = entries[-2:] if is_last else entries[-1:]
      # Nothing or half a first line, where a kill prevented the first write.
      if is_last and len(entries) == 1 and b"\n" not in (content or b""):
        return None
    if any(e.fits(content) for e in fitting):
      return None
    if content is None:
      return "is missing"
    size = entries[-1].size
    if not content:
      return f"is empty, {size:,} bytes were written"
    if len(content) < size:
      return f"has {len(content):,} bytes, {size:,} were written"
    return "is not what was written (its SHA-256 differs)"

  def find_damage(self) -> dict[str, str]:
    """Maps each file that is damaged to what is wrong with it."""
    out = {}
    for name in dict.fromkeys(e.file for e in self.entries):
      if damage := self.damage(name, read_bytes(self.folder / name)):
        out[name] = damage
    return out


def gone(path: Path) -> OSError:
  """Returns the error for what was there when the run began, and is not now."""
  return OSError(
    f"{path} is gone: was the directory moved or deleted while the run was "
    "under way? The same command goes on where it is now"
  )


def read_bytes(path: Path) -> bytes | None:
  """Reads a file; None if it is not there."""
  try:
    return path.read_bytes()
  except (FileNotFoundError, NotADirectoryError):
    return None


# --- the folders that this process writes -------------------------------------

_tracked: dict[Path, tuple[Ledger, str]] = {}


def track(folder: Path, advice: str, say: Callable[[str], object]) -> None:
  """Remembers from here on what is written below a folder, and checks reads.

  Args:
    folder: need not exist.
    advice: what to do about a damaged file, after "restore it, or ".
    say: is called with a line about a folder that has files and no ledger, or
      about lines of it that cannot be read.
  """
  root = folder.resolve()
  ledger = Ledger(root)
  _tracked[root] = ledger, advice
  if not ledger.exists and root.is_dir() and any(_old_files(root)):
    say(
      f"{folder}: no {NAME}, as of an earlier version; files of before are not "
      "checked"
    )
  if ledger.unreadable:
    say(f"{ledger.path}: lines {ledger.unreadable} were changed; left out")
  if ledger.entries:
    # What a kill prevented would look like a loss below further lines.
    last = ledger.entries[-1]
    content = read_bytes(root / last.file)
    if not last.fits(content) and not ledger.damage(last.file, content):
      ledger.add(Entry.of(last.file, content, last.grows))


def _old_files(root: Path) -> list[Path]:
  """Lists files of a run in a folder."""
  return [p for p in root.glob("*.json*") if p.name != NAME]


def forget(folder: Path) -> None:
  """Ends the tracking of a folder, and of those in it."""
  root = folder.resolve()
  for path in [p for p in _tracked if p == root or root in p.parents]:
    del _tracked[path]


@contextlib.contextmanager
def tracking(folder: Path) -> Iterator[None]:
  """Tracks a folder for the body, unless this process does already."""
  if folder.resolve() in _tracked:
    yield
    return
  track(folder, "make it again", lambda line: None)
  try:
    yield
  finally:
    forget(folder)


def _find(path: Path) -> tuple[Ledger, str, str] | None:
  """Finds the ledger for a file, the file's name there, and the advice."""
  if path.name.endswith(_FREE):
    return None
  parent = path.parent.resolve()
  for folder in (parent, *parent.parents):
    if folder in _tracked:
      ledger, advice = _tracked[folder]
      name = (parent / path.name).relative_to(folder)
      hidden = any(part.startswith(".") for part in name.parts)
      if hidden or name.name == NAME:
        return None  # of a folder that is not in its place yet
      return ledger, name.as_posix(), advice
  return None


def before_write(
  path: Path, content: bytes | None, grows: bool = False
) -> None:
  """Adds what is about to be written; None is a file about to be deleted."""
  if found := _find(path):
    ledger, name, _ = found
    if content is not None or ledger.newest(name):
      ledger.add(Entry.of(name, content, grows))


def check(path: Path, content: bytes | None) -> None:
  """Compares what was read with what was written.

  Raises:
    DamagedFile: they differ; the message has the file and what to do.
  """
  if not (found := _find(path)):
    return
  ledger, name, advice = found
  damage = ledger.damage(name, content)
  if damage:
    ledger.read()  # another machine may have written the file since
    damage = ledger.damage(name, content)
  if damage:
    raise DamagedFile(f"{path} {damage}", advice)


def check_folder(folder: Path, remade: Collection[str]) -> None:
  """Checks the files that were written below a tracked folder.

  Args:
    folder: whose files are checked.
    remade: names of files that are made again anyway.

  Raises:
    DamagedFile: for the first one that is damaged.
  """
  ledger, _ = _tracked[folder.resolve()]
  for name in sorted(set(ledger.find_damage()) - {*remade}):
    check(folder / name, read_bytes(folder / name))


def note_removal(path: Path) -> None:
  """Adds to the nearest ledger that a file or a whole folder goes for good.

  Args:
    path: of what is about to be removed, in a folder that nobody tracks.
  """
  for folder in path.parents[:3]:
    if (folder / NAME).exists():
      ledger = Ledger(folder)
      name = path.relative_to(folder).as_posix()
      for file in dict.fromkeys(e.file for e in ledger.entries):
        if file == name or file.startswith(f"{name}/"):
          ledger.add(Entry.of(file, None, False))
      return


def was_written(path: Path, content: bytes) -> bool:
  """Tells whether a content is the one that a file had last."""
  found = _find(path)
  newest = found and found[0].newest(found[1])
  return newest is not None and newest.fits(content)
