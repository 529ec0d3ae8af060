"""Keeps a run directory on an object store equal to a local copy of it.

  --workdir=s3://bucket/run      ~/.cache/bct_jax/runs/s3+bucket/run
  the run, as others find it <-- what this machine reads and writes

All code works on the local copy. What files.py and ledger.py write there is
sent at once and in the same order, so a kill leaves the store in a state that a
kill could have left on a disk: any machine goes on from it. A file that only
grows by lines that are not flushed yet is sent before the next that is.

Who holds the folder writes its name into the copy, and store_lock.py keeps it
in the store. If the last holder's name is here, the copy is as new as the store
or newer: what the store lacks is sent. Otherwise the copy is removed and
fetched anew. Checkpoints are fetched when they are needed; see
train/checkpoint.py.

Names that begin with a dot stay local: locks, and files not yet in place. So do
claims of a sweep, which one machine runs.
"""

import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from bct_jax.infra.object_store import Store
from bct_jax.infra.store_lock import FOLDER, StoreLock

# Orbax writes this file of a checkpoint last, and it is sent last.
MARK = "_CHECKPOINT_METADATA"
_CHECKPOINTS = ("checkpoints", "refine")  # folders of numbered checkpoints
_HOLDER, _LINKS, _MOVE = ".holder", ".links.json", ".move.json"
_LOCAL = "claims"


class RemoteFolder:
  """Sends what is written in a local folder, and fetches what it lacks.

  Attributes:
    store: the folder in the store.
    local: the copy of it.
    sizes: bytes of the objects by name, as far as this process knows.
  """

  def __init__(self, store: Store, local: Path, lock: StoreLock | None = None):
    """Knows both sides; nothing is sent without a lock."""
    self.store, self.local, self.lock = store, local.resolve(), lock
    self.sizes = store.list()
    self._unsent: dict[str, None] = {}  # names of files that have grown
    self._busy = threading.RLock()

  def name(self, path: Path) -> str | None:
    """Returns the name of a path in the store; None if it stays local."""
    name = (path.parent.resolve() / path.name).relative_to(self.local)
    if not is_checkpoint(name.as_posix()):  # zarr has such names
      hidden = any(part.startswith(".") for part in name.parts)
      if hidden or name.parts[0] == _LOCAL:
        return None
    return name.as_posix()

  # --- what this process has written ------------------------------------------

  def wrote(self, path: Path, wait: bool) -> None:
    """Sends a file behind those that have grown, or has it wait for the next.

    Raises:
      OSError: another machine holds the folder, or the store is out of reach.
    """
    if self.lock is None or (name := self.name(path)) is None:
      return
    with self._busy:
      if wait:
        self._unsent[name] = None
        return
      self._send_unsent(but=name)
      self._send([name])

  def _send_unsent(self, but: str = "") -> None:
    """Sends what waits, but for a file or for those in a folder."""
    names = [n for n in self._unsent if not _is_below(n, but)]
    self._unsent.clear()
    self._send(names)

  def _send(self, names: Iterable[str]) -> None:
    """Sends files in order, but for those that are gone again."""
    for name in names:
      if (path := self.local / name).is_file():
        self._check()
        size = path.stat().st_size
        self.store.send([(path, name)])
        self.sizes[name] = size

  def _check(self) -> None:
    """Makes sure that this machine may write; see `StoreLock.check`."""
    if self.lock is not None:
      self.lock.check()

  def send_folder(self, folder: Path, but: str = "", last: str = "") -> None:
    """Sends all files of a folder, several at a time.

    Args:
      folder: below the local one, whose files nobody changes.
      but: the name of a file in it that is not sent.
      last: the name of one that is sent when the others are there.
    """
    names = [self.name(p) for p in sorted(folder.rglob("*")) if p.is_file()]
    names = [n for n in names if n and n != f"{self.name(folder)}/{but}"]
    ends = [n for n in names if n == f"{self.name(folder)}/{last}"]
    for part in ([n for n in names if n not in ends], ends):
      self._check()
      self.store.send([(self.local / name, name) for name in part])
      self.sizes |= {n: (self.local / n).stat().st_size for n in part}

  def delete(self, path: Path) -> None:
    """Deletes a file or a whole folder in the store; marks go first."""
    if self.lock is None or (name := self.name(path)) is None:
      return
    with self._busy:
      self._send_unsent(but=name)
      gone = [n for n in self.sizes if _is_below(n, name)]
      self._delete(sorted(gone, key=lambda n: not n.endswith(f"/{MARK}")))

  def _delete(self, names: Iterable[str]) -> None:
    """Deletes objects."""
    for name in names:
      self._check()
      self.store.delete([name])
      self.sizes.pop(name, None)

  def begin_move(self, source: Path, target: Path) -> None:
    """Writes that a folder is moved, before it is here; see `finish_move`.

    From here on it is moved, as a kill leaves the rest to the next command.
    """
    with self._busy:
      self.delete(target)
      self._write(_MOVE, [self.name(source), self.name(target)])

  def finish_move(self) -> bool:
    """Moves what a command began to move; tells whether one did."""
    if _MOVE not in self.sizes:
      return False
    source, target = json.loads(self.store.read(_MOVE))
    names = [n for n in self.sizes if _is_below(n, source)]
    for name in names:
      self._check()
      new = target + name.removeprefix(source)
      self.store.copy([(name, new)])
      self.sizes[new] = self.sizes[name]
    self._delete([*names, _MOVE])
    return True

  def note_link(self, link: Path) -> None:
    """Remembers a symbolic link, of which stores have none."""
    links = self._read(_LINKS)
    links[link.relative_to(self.local).as_posix()] = os.readlink(link)
    self._write(_LINKS, links)

  def _read(self, name: str) -> dict[str, str]:
    """Reads an object with JSON; {} without one."""
    return json.loads(self.store.read(name)) if name in self.sizes else {}

  def _write(self, name: str, value: Any) -> None:
    """Writes an object with JSON."""
    self._check()
    content = json.dumps(value).encode()
    self.store.write(name, content)
    self.sizes[name] = len(content)

  # --- what the local copy lacks ----------------------------------------------

  def fetch(self, wanted: Iterable[str]) -> None:
    """Fetches objects that are not here, or not whole.

    Raises:
      FileNotFoundError: an object is gone.
    """
    lacking = [n for n in wanted if not self._is_here(n)]
    self.store.fetch([(name, self.local / name) for name in lacking])

  def _is_here(self, name: str) -> bool:
    """Tells whether a file has the size of its object."""
    path = self.local / name
    return path.is_file() and path.stat().st_size == self.sizes[name]

  def names(self, folder: Path) -> list[str]:
    """Lists the objects of a folder that this process knows."""
    name = self.name(folder) or ""
    return [n for n in self.sizes if _is_below(n, name)]

  def fetch_folder(self, folder: Path) -> None:
    """Fetches what the store has in a folder now, checkpoints among it."""
    self.sizes |= self.store.list(self.name(folder) or "")
    self.fetch(self.names(folder))

  def newest(self, folder: Path) -> int | None:
    """Returns the newest checkpoint of a folder that the store has whole."""
    name = self.name(folder) or ""
    there = self.store.list(name)
    for gone in [n for n in self.sizes if _is_below(n, name)]:
      del self.sizes[gone]
    self.sizes |= there
    return max(self.steps(folder, MARK), default=None)

  def steps(self, folder: Path, file: str = "") -> list[int]:
    """Lists the checkpoints of a folder that have some file, or this one."""
    where = PurePosixPath(self.name(folder) or "")
    paths = [PurePosixPath(n) for n in self.sizes]
    below = [p.relative_to(where) for p in paths if where in p.parents]
    names = {p.parts[0] for p in below if not file or p.parts[1:] == (file,)}
    return sorted(int(name) for name in names if name.isdigit())

  def fetch_all(self) -> None:
    """Fetches all but checkpoints into an empty folder, and makes links.

    Ledgers come first: then a file may only be newer than its line.
    """
    names = self._small()
    ledgers = [n for n in names if n.endswith("files.jsonl")]
    for part in (ledgers, [n for n in names if n not in ledgers]):
      self.fetch(part)
    for name, target in self._read(_LINKS).items():
      link = self.local / name
      link.parent.mkdir(parents=True, exist_ok=True)
      if not link.exists():  # as where a user put a folder in its place
        link.symlink_to(target)

  # --- the beginning and the end of a command ---------------------------------

  def begin(self, name: str, owner: str) -> None:
    """Makes the copy that of a new holder.

    Args:
      name: of the holder.
      owner: the name that this copy has.
    """
    assert self.lock is not None
    last, moved = self.lock.last or {}, self.finish_move()
    if moved or last.get("owner") != owner:
      remove_all(self.local)
      self.fetch_all()
    elif last["ended"]:
      self.fetch(self._small())  # what a user may have put there
    else:
      self._send_all()
    write_owner(self.local, name)

  def _send_all(self) -> None:
    """Sends all files, and checkpoints that the store has not whole.

    But for those whose other shards another process has, in zarr files. Files
    of checkpoints that are not here were not fetched; they stay there.
    """
    files = dict(self._files())
    for name, path in files.items():
      if path.name == MARK and name not in self.sizes:
        if not any(path.parent.rglob(".zarray")):
          self.send_folder(path.parent, last=MARK)
    small = [n for n in files if not is_checkpoint(n)]
    self._send(small)
    self._delete([n for n in self._small() if n not in files])

  def _small(self) -> list[str]:
    """Lists the objects that every copy has: all but those of checkpoints."""
    return [n for n in self.sizes if not (n[0] == "." or is_checkpoint(n))]

  def _files(self) -> Iterator[tuple[str, Path]]:
    """Yields the files of the copy with their names in the store."""
    for folder, _, names in os.walk(self.local):
      for path in (Path(folder, name) for name in sorted(names)):
        if not path.is_symlink() and (name := self.name(path)):
          yield name, path

  def end(self) -> None:
    """Sends what was written by others than files.py, and gives the lock back.

    Such are the report, and what trackers write.
    """
    assert self.lock is not None
    files = dict(self._files())
    with self._busy:
      for name, path in files.items():
        if not is_checkpoint(name) and (
          name in self._unsent or path.stat().st_size != self.sizes.get(name)
        ):
          self._send([name])
      self._delete([n for n in self._small() if n not in files])
    self.lock.release()


def find_other_run(store: Store) -> str | None:
  """Returns the URL of a run that is in a folder, or that the folder is in."""
  for name in store.list():
    if (at := name.find(f"/{FOLDER}/")) > 0:
      return f"{store.url}/{name[:at]}"
  scheme, _, path = store.url.partition("://")
  for folder in list(PurePosixPath(path).parents)[:-2]:
    url = f"{scheme}://{folder}"
    if Store(url, store.patience).list(FOLDER):
      return url
  return None


def is_checkpoint(name: str) -> bool:
  """Tells whether a name is one of a file of a checkpoint."""
  return any(part in _CHECKPOINTS for part in name.split("/")[:-1])


def _is_below(name: str, folder: str) -> bool:
  """Tells whether a name is that of a file, or of one in that folder."""
  return name == folder or name.startswith(f"{folder}/")


def remove_all(folder: Path) -> None:
  """Empties a folder, which is made if it is not there."""
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True, exist_ok=True)


def write_owner(local: Path, name: str) -> None:
  """Writes whose copy a folder is, behind all that it must have."""
  local.mkdir(parents=True, exist_ok=True)
  (local / _HOLDER).write_text(name)


def read_owner(local: Path) -> str:
  """Returns whose copy a folder is; "" if it is nobody's."""
  path = local / _HOLDER
  return path.read_text() if path.exists() else ""
