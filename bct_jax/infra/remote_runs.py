"""Finds the run directories of this process that are copies of a store's.

See remote_folder.py for what a copy is. Functions of files.py and ledger.py
call `wrote` and `deleted`, which do nothing for a path in no copy.
"""

import atexit
import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from bct_jax.infra.object_store import Store, is_url
from bct_jax.infra.remote_folder import (
  RemoteFolder,
  find_other_run,
  is_checkpoint,
  read_owner,
  remove_all,
  write_owner,
)
from bct_jax.infra.store_lock import StoreLock

# Seconds without a sign of life after which a run on another machine is gone.
LEASE = 120.0
_READING = 30.0  # seconds for which a reader asks a store again

_open: dict[Path, RemoteFolder] = {}


def find(path: Path) -> RemoteFolder | None:
  """Returns the folder on a store that a path is in a copy of; None if none."""
  if not _open:
    return None
  parent = path.parent.resolve()
  for folder in (parent, *parent.parents):
    if folder in _open:
      return _open[folder]
  return None


def wrote(path: Path, wait: bool = False) -> None:
  """Sends a file that was written; see `RemoteFolder.wrote`."""
  if remote := find(path):
    remote.wrote(path, wait)


def deleted(path: Path) -> None:
  """Deletes in the store what was deleted here, a file or a folder."""
  if remote := find(path):
    remote.delete(path)


def move(source: Path, target: Path) -> None:
  """Moves a folder in place of one that may be there, also in the store."""
  remote = find(source)
  if remote and remote.lock:
    remote.begin_move(source, target)
  if target.exists():
    shutil.rmtree(target)
  target.parent.mkdir(parents=True, exist_ok=True)
  source.rename(target)
  if remote and remote.lock:
    remote.finish_move()


def is_left_copy(folder: Path) -> bool:
  """Tells whether a folder is a copy that no command of this process holds."""
  return bool(read_owner(folder)) and find(folder / "x") is None


def note_link(link: Path) -> None:
  """Remembers a symbolic link; see `RemoteFolder.note_link`."""
  if remote := find(link):
    remote.note_link(link)


def send_folder(folder: Path, last: str = "") -> None:
  """Sends a folder that was put there whole; see `RemoteFolder.send_folder`."""
  if (remote := find(folder)) and remote.lock:
    remote.send_folder(folder, last=last)


def fetch_folder(folder: Path) -> None:
  """Fetches what a folder of a store has that its copy here lacks."""
  if remote := find(folder):
    remote.fetch_folder(folder)


def sizes_below(folder: Path) -> dict[str, int]:
  """Returns the bytes of files of checkpoints in the store, by their names.

  Args:
    folder: what the names are below; {} for one that is not on a store.
  """
  if (remote := find(folder / "x")) is None:
    return {}
  where = folder.resolve().relative_to(remote.local).as_posix()
  where = "" if where == "." else f"{where}/"
  return {
    name.removeprefix(where): size
    for name, size in remote.sizes.items()
    if name.startswith(where) and is_checkpoint(name)
  }


def place_of(path: Path) -> str:
  """Returns the URL of a path in a copy, and any other path as it is."""
  if remote := find(path / "x"):
    name = path.resolve().relative_to(remote.local).as_posix()
    return remote.store.url + ("" if name == "." else f"/{name}")
  return str(path)


def size_of(path: Path) -> int | None:
  """Returns the bytes of a file, here or on a store; None if it is nowhere."""
  if path.exists():
    return path.stat().st_size
  return sizes_below(path.parent).get(path.name)


def exists(path: Path) -> bool:
  """Tells whether a file or folder exists, here or on a store."""
  return path.exists() or bool(sizes_below(path))


def local_folder(url: str, process: int = 0) -> Path:
  """Returns where a process has its copy of a folder: in `$BCT_JAX_CACHE`.

  Processes wait for each other by the names of files, so the copies have one
  name.
  """
  above, _, name = url.strip("/").replace("://", "/", 1).rpartition("/")
  cache = Path(os.environ.get("BCT_JAX_CACHE") or "~/.cache/bct_jax")
  runs = f"runs.process{process}" if process else "runs"
  # One level, so that no copy is in another.
  return cache.expanduser() / runs / above.replace("/", "+") / name


@contextlib.contextmanager
def hold(url: str, lease: float) -> Iterator[RemoteFolder]:
  """Holds a folder for a command, with a copy that is as new as the store.

  At the end the store has all of the copy, unless it was out of reach.

  Args:
    url: such as s3://bucket/run.
    lease: seconds without a sign of life after which another machine may take
      the folder over, and for which the store may be out of reach.

  Raises:
    ValueError: another command holds it, or the store refuses.
    OSError: the store is out of reach.
  """
  store, local = Store(url, lease), local_folder(url)
  local.mkdir(parents=True, exist_ok=True)
  mine = uuid.uuid4().hex
  with contextlib.ExitStack() as contexts:
    record = contexts.enter_context(_hold_here(local))
    before = record.read_text()
    try:
      if other := find_other_run(store):
        raise ValueError(f"{url}: no run is in another, and {other} is one")
      lock = StoreLock(store, mine, lease, lambda x: x["owner"] == before)
    except PermissionError as e:
      raise ValueError(str(e)) from None  # nothing has begun
    contexts.callback(lock.end)
    record.write_text(mine)
    remote = RemoteFolder(store, local, lock)
    remote.begin(mine, read_owner(local))
    _open[remote.local] = remote
    contexts.callback(_open.pop, remote.local)
    try:
      yield remote
    except OSError:
      raise  # perhaps of the store: it was waited for already
    except BaseException:
      remote.end()
      raise
    remote.end()


@contextlib.contextmanager
def open_run(place: str | Path | None, lease: float) -> Iterator[Path | None]:
  """Yields a path as it is, and holds the folder of a URL; see `hold`."""
  if place is None or not is_url(place):
    yield None if place is None else Path(place).expanduser()
    return
  with hold(str(place), lease) as remote:
    yield remote.local


@contextlib.contextmanager
def _hold_here(local: Path) -> Iterator[Path]:
  """Keeps other commands on this machine out; yields a file for the holder.

  Raises:
    ValueError: another command is there.
  """
  beside = local.with_name(f".{local.name}.holder")
  with open(beside, "a") as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise ValueError(
        f"{local} is in use by another command on this machine"
      ) from None
    yield beside


@contextlib.contextmanager
def follow(url: str, local: Path, lease: float, last: str, name: str):
  """Joins another process that holds a folder, with a copy of its own.

  Args:
    url, lease: as of `hold`.
    local: the folder of the copy.
    last: the holder before.
    name: the holder's.
  """
  if read_owner(local) != last:
    remove_all(local)
  write_owner(local, name)
  remote = RemoteFolder(Store(url, lease), local)
  _open[remote.local] = remote
  try:
    yield
  finally:
    del _open[remote.local]


_copies: dict[str, Path] = {}


def local_copy(place: str | Path) -> Path:
  """Returns a place here, or a copy of it that goes when the process ends.

  Args:
    place: a path; or the URL of a run, of a sweep or of a folder in one, which
      is fetched but for its checkpoints.

  Raises:
    ValueError: there is nothing at the URL.
  """
  if not is_url(place):
    return Path(place).expanduser()
  url = str(place).rstrip("/")
  parts = url.split("/")  # s3:, "", bucket, folder, ...
  for names in (("arms", "organisms"), ("cells",)):
    if len(parts) > 5 and parts[-2] in names:
      parts = parts[:-2]
  root = "/".join(parts)
  if root not in _copies:
    store = Store(root, _READING)
    temporary = tempfile.mkdtemp(prefix="bct_jax_")
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    local = Path(temporary, root.rpartition("/")[2])
    local.mkdir()
    remote = RemoteFolder(store, local)
    if not any(name[0] != "." for name in remote.sizes):
      raise ValueError(f"{root}: there is no run")
    for attempt in range(3):  # files of a run that goes on may be replaced
      try:
        remote.sizes = store.list()
        remote.fetch_all()
        break
      except FileNotFoundError:
        if attempt == 2:
          raise
    _open[remote.local], _copies[root] = remote, local
  return _copies[root] / url[len(root) :].strip("/")
