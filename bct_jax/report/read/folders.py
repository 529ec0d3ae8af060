"""Run directories from what was named: runs, or sweeps with a run each cell."""

from collections.abc import Sequence
from pathlib import Path

from bct_jax.report.read.load import load_run
from bct_jax.report.read.records import read_json
from bct_jax.report.read.types import ReportError, RunRecord

CELLS = "cells"  # the folder of a sweep that has its runs
PLAN = "cells.json"  # the names of all its cells, also those not begun


def run_folders(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
  """The runs that were named, and the cells of sweeps that were.

  Returns:
    Folders with a config.json, in the order given, cells by name; and a line
    for each sweep with cells that have not begun.

  Raises:
    ReportError: a folder is not there, or is neither a run nor a sweep.
  """
  folders, notes = [], []
  for path in map(Path, paths):
    if not path.is_dir():
      raise ReportError(f"{path}: no such run directory")
    if (path / "config.json").exists() or not (path / CELLS).is_dir():
      folders.append(path)
      continue
    names = [p.name for p in (path / CELLS).iterdir() if p.is_dir()]
    begun = [n for n in names if (path / CELLS / n / "config.json").exists()]
    folders += [path / CELLS / name for name in sorted(begun)]
    planned = _planned(path / PLAN) if (path / PLAN).exists() else []
    waiting = sorted({*names, *planned} - set(begun))
    if waiting:
      notes.append(
        f"{path}: {len(waiting)} of {len(waiting) + len(begun)} cells have no"
        f" config.json, so have not begun: {', '.join(waiting)}"
      )
  return folders, notes


def _planned(path: Path) -> list[str]:
  names = read_json(path).value.get("cells")
  if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
    raise ReportError(f"{path}: cells should be a list of names")
  return names


def load_runs(paths: Sequence[str | Path]) -> tuple[list[RunRecord], list[str]]:
  """`run_folders`, read.

  Raises:
    ReportError: a run cannot be read; one line that names the file.
  """
  folders, notes = run_folders(paths)
  return [load_run(folder) for folder in folders], notes
