"""Finds the run directories below paths: runs, and sweeps with a run a cell."""

import sys
from collections.abc import Sequence
from pathlib import Path

from bct_jax.infra.remote_runs import local_copy
from bct_jax.infra.visible import visible
from bct_jax.report.read.load import load_run
from bct_jax.report.read.records import read_json
from bct_jax.report.read.types import ReportError, RunRecord

CELLS = "cells"  # the folder of a sweep that has its runs
PLAN = "cells.json"  # the names of all its cells, also those not begun


def run_folders(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
  """Finds runs, and the cells of sweeps.

  Args:
    paths: directories of runs and of sweeps, or URLs of some on a store.

  Returns:
    Folders with a config.json, in the order of `paths`, the cells of a sweep as
    its file has them; and a line for each sweep with cells that have not begun.

  Raises:
    ReportError: a path is no directory, or the plan of a sweep is damaged.
  """
  folders, notes = [], []
  for path in map(find_run, paths):
    if not path.is_dir():
      raise ReportError(f"{path}: no such run directory")
    if (path / "config.json").exists() or not (path / CELLS).is_dir():
      folders.append(path)
      continue
    names = [p.name for p in (path / CELLS).iterdir() if p.is_dir()]
    runs = [n for n in names if (path / CELLS / n / "config.json").exists()]
    plan = _plan(path / PLAN) if (path / PLAN).exists() else []
    ordered = dict.fromkeys((*plan, *sorted(names)))
    folders += [path / CELLS / name for name in ordered if name in runs]
    missing = [name for name in ordered if name not in runs]
    if missing:
      notes.append(
        f"{path}: {len(missing)} of {len(missing) + len(runs)} cells have no"
        f" config.json, so have not begun: {', '.join(missing)}"
      )
  return folders, notes


def find_run(place: str | Path) -> Path:
  """Returns a path, or the copy of a run on an object store.

  Raises:
    ReportError: there is no run at the URL, or the store refuses.
  """
  try:
    return local_copy(place)
  except ValueError as e:
    raise ReportError(str(e)) from None


def _plan(path: Path) -> list[str]:
  """Reads the names of all cells of a sweep."""
  names = read_json(path).value.get("cells")
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise ReportError(f"{path}: cells should be a list of names")
  return names


def load_runs(
  paths: Sequence[str | Path], strict: bool = False
) -> tuple[list[RunRecord], list[str]]:
  """Reads the runs that `run_folders` finds; prints what is damaged to stderr.

  A cell of a sweep that cannot be read is left out, and a note says so.

  Args:
    paths: directories of runs and of sweeps.
    strict: whether such a cell is an error, as where it may be half written.

  Returns:
    The runs, and the notes: those of `run_folders`, and of cells left out.

  Raises:
    ReportError: a run cannot be read; one line that names the file.
  """
  folders, notes = run_folders(paths)
  runs, given = [], {*map(find_run, paths)}
  for folder in folders:
    try:
      runs.append(load_run(folder))
    except ReportError as e:
      if strict or folder in given:
        raise
      notes.append(f"The cell {folder.name} is left out: {e}")
      print(f"warning: {visible(notes[-1])}", file=sys.stderr)
  for run in runs:
    for line in run.damage:
      print(f"warning: {run.path}: {visible(line)}", file=sys.stderr)
  return runs, notes
