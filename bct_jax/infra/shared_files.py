"""Reads and writes files once for all processes of a run.

Every process calls these functions, in the same order. The first process alone
touches the disk, and what it reads decides: the others receive the value, since
a shared file system may show them an older state. An error of the first process
is raised in every process. The wait is named after the file; see processes.py.

Values travel through the coordination service of JAX, which keeps them until
the run ends: rollouts of an eval are better read where they are needed, inside
of `processes.run_on_first`.
"""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from bct_jax.infra import files, ledger
from bct_jax.infra.processes import is_first, run_on_first
from bct_jax.infra.progress import log_line


def exists(path: Path) -> bool:
  """Tells whether a file or folder exists."""
  return run_on_first(path.name, path.exists)


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
