"""Reads and writes files once for all processes of a run.

Every process calls these functions, in the same order. The first process alone
touches the disk, and what it reads decides: the others receive the value, since
a shared file system may show them an older state. An error of the first process
is raised in every process. The wait is named after the file; see processes.py.

Values travel through the coordination service of JAX, which keeps them until
the run ends: rollouts of an eval are better read where they are needed, inside
of `processes.run_on_first`.
"""

import contextlib
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bct_jax.infra import files, ledger, processes, remote_runs
from bct_jax.infra.object_store import is_url
from bct_jax.infra.processes import is_first, run_on_first
from bct_jax.infra.progress import log_line


@contextlib.contextmanager
def open_workdir(place: str | Path, lease: float) -> Iterator[Path]:
  """Yields the folder of a run; of one on an object store a local copy.

  Each process has a copy of its own. Those of others than the first have
  checkpoints alone; see remote_folder.py.

  Args:
    place: a path, or a URL such as s3://bucket/run.
    lease: see `remote_runs.hold`.

  Raises:
    ValueError: another command holds the folder, or the store refuses.
    OSError: the store is out of reach.
  """
  if not is_url(place):
    yield Path(place).expanduser()
    return
  url = str(place)
  local = remote_runs.local_folder(url, processes.index())
  with contextlib.ExitStack() as contexts:

    def begin() -> list[str]:
      remote = contexts.enter_context(remote_runs.hold(url, lease))
      log_line(f"{url}: local copy in {local}")
      last = remote.lock and remote.lock.last or {}
      return [last.get("owner", ""), remote_runs.read_owner(local)]

    last, owner = run_on_first("run directory", begin)
    if not is_first():
      contexts.enter_context(remote_runs.follow(url, local, lease, last, owner))
    yield local


def exists(path: Path) -> bool:
  """Tells whether a file or folder exists, also in a store alone."""
  return run_on_first(path.name, lambda: remote_runs.exists(path))


def move_folder(source: Path, target: Path) -> None:
  """Moves a folder that is there, in place of one that may be there."""
  run_on_first(target.name, lambda: remote_runs.move(source, target))
  _forget_copies(source, target)


def delete_folder(path: Path) -> None:
  """Deletes a folder if it is there."""
  run_on_first(path.name, lambda: files.delete_folder(path))
  _forget_copies(path)


def _forget_copies(*folders: Path) -> None:
  """Removes from a copy of this process's own what it has of folders."""
  for folder in () if is_first() else folders:
    if remote_runs.find(folder):
      shutil.rmtree(folder, ignore_errors=True)


def fetch_folder(folder: Path) -> None:
  """Fetches what the first process wrote, where others do not see its disk."""
  if not is_first():
    remote_runs.fetch_folder(folder)


def track(folder: Path, advice: str) -> None:
  """Remembers what is written below a folder, as `ledger.track` does."""
  run_on_first(folder.name, lambda: ledger.track(folder, advice, log_line))


def check_folder(folder: Path, remade: Collection[str]) -> None:
  """Checks the files of a folder as `ledger.check_folder` does."""
  run_on_first(folder.name, lambda: ledger.check_folder(folder, remade))


def are_whole(*paths: Path) -> bool:
  """Tells whether files that can be made again are there and not damaged.

  A line says of a damaged one that it is made again.
  """

  def look() -> bool:
    """Checks one after the other."""
    try:
      for path in paths:
        ledger.check(path, ledger.read_bytes(path))
    except ledger.DamagedFile as e:
      log_line(f"{e.damage}: made again")
      return False
    return all(path.exists() for path in paths)

  return run_on_first(paths[0].name, look)


def read_json(path: Path) -> Any:
  """Reads JSON.

  Raises:
    ValueError: the file is missing or broken; the message names it.
  """
  return run_on_first(path.name, lambda: files.read_json(path))


def read_json_or_none(path: Path) -> Any:
  """Reads JSON; returns None if there is no such file.

  Raises:
    ValueError: the file is broken; the message names it.
  """
  return run_on_first(path.name, lambda: files.read_json_or_none(path))


def read_json_or_same(path: Path, value: Any) -> Any:
  """Reads JSON or mends it as `files.read_json_or_same` does."""
  return run_on_first(path.name, lambda: files.read_json_or_same(path, value))


def read_lines(path: Path) -> list[dict[str, Any]]:
  """Reads the rows of a JSON lines file as `files.read_lines` does."""
  return run_on_first(path.name, lambda: files.read_lines(path))


def write_text(path: Path, text: str) -> None:
  """Writes a file whole or not at all."""
  run_on_first(path.name, lambda: files.write_text(path, text))


def write_json(path: Path, value: Any) -> None:
  """Writes JSON whole or not at all."""
  run_on_first(path.name, lambda: files.write_json(path, value))


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
  """Writes JSON lines whole or not at all."""
  run_on_first(path.name, lambda: files.write_lines(path, rows))


def append_line(path: Path, row: Mapping[str, Any]) -> None:
  """Adds one line to a JSON lines file."""
  run_on_first(path.name, lambda: files.append_line(path, row))


def append_line_unawaited(path: Path, row: Mapping[str, Any]) -> None:
  """Adds one line while the other processes go on.

  For lines that come often, as those of updates do. An error is raised in the
  first process only. `sync_lines` makes the lines last.
  """
  if is_first():
    files.append_line(path, row, sync=False)


def sync_lines(path: Path) -> None:
  """Flushes appended lines to the disk as `files.sync_lines` does."""
  run_on_first(path.name, lambda: files.sync_lines(path))


def drop_after(path: Path, step: int) -> None:
  """Drops the rows after `step` as `files.drop_after` does."""

  def drop() -> None:
    files.drop_after(path, step)

  run_on_first(path.name, drop)


def list_files(folder: Path, pattern: str) -> list[Path]:
  """Lists the files in a folder whose names match a glob pattern, in order."""
  names = run_on_first(
    folder.name, lambda: sorted(path.name for path in folder.glob(pattern))
  )
  return [folder / name for name in names]


def delete(path: Path) -> None:
  """Deletes a file if it is there."""
  run_on_first(path.name, lambda: files.delete(path))
