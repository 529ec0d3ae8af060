"""Reads and writes files once for all processes of a run.

Every process calls these functions, in the same order. The first process alone
touches the disk, and what it reads decides: the others receive the value, since
a shared file system may show them an older state. An error of the first process
is raised in every process. The wait is named after the file; see processes.py.

Values travel through the coordination service of JAX, which keeps them until
the run ends: rollouts of an eval are better read where they are needed, inside
of `processes.run_on_first`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bct_jax.infra import files
from bct_jax.infra.processes import is_first, run_on_first


def exists(path: Path) -> bool:
  """Tells whether a file or folder exists."""
  return run_on_first(path.name, path.exists)


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
  return run_on_first(
    path.name, lambda: files.read_json(path) if path.exists() else None
  )


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
  first process only.
  """
  if is_first():
    files.append_line(path, row)


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
  run_on_first(path.name, lambda: path.unlink(missing_ok=True))
