"""Makes a report again whenever files of its runs change."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bct_jax.report import write_report
from bct_jax.report.read.folders import run_folders
from bct_jax.report.read.types import ReportError

# What a report is made of, below a run directory.
_READ = (
  "*.json",
  "organisms/*/gate.json",
  "arms/*/*.json*",
  "arms/*/*.txt",
  "arms/*/rollouts/step_*.jsonl",
)


def watch_runs(
  paths: Sequence[Path], out: Path, figures_dir: Path | None, seconds: float
) -> None:
  """Writes the report, and again after each change, until all runs are done.

  Done is a run with done.json, or a cell that failed; a sweep is done when all
  of its planned cells are. Ctrl-C ends it too. A file that is damaged or gone
  is told, and looked at again when something changes.

  Args:
    paths: run or sweep directories, which must be there.
    out: the report.
    figures_dir: as in write_report.
    seconds: between looks.

  Raises:
    ReportError: one of the paths is no directory.
  """
  run_folders(paths)
  before = None
  try:
    while True:
      # Looked at before it is read: what changes meanwhile is seen next time.
      now, done = _state(paths), _is_done(paths)
      if now != before:
        _write(paths, out, figures_dir)
      if done:
        return
      before = now
      time.sleep(seconds)
  except KeyboardInterrupt:
    return


def _write(paths: Sequence[Path], out: Path, figures_dir: Path | None) -> None:
  start = time.monotonic()
  try:
    write_report(paths, out, figures_dir)
  except ReportError as e:
    print(f"{e}; looking again when it changes", file=sys.stderr, flush=True)
  else:
    print(f"{out} ({time.monotonic() - start:.1f} s)", flush=True)


def _state(paths: Sequence[Path]) -> dict[Path, tuple[int, int]]:
  """Time and size of every file that a report of these is made of."""
  folders = [*paths, *_begun(paths)]
  found = {p for f in folders for kind in _READ for p in f.glob(kind)}
  state = {}
  for path in found:
    try:
      told = path.stat()
    except FileNotFoundError:  # renamed or removed since it was listed
      continue
    state[path] = told.st_mtime_ns, told.st_size
  return state


def _begun(paths: Sequence[Path]) -> list[Path]:
  try:
    return run_folders(paths)[0]
  except ReportError:
    return []


def _is_done(paths: Sequence[Path]) -> bool:
  try:
    folders, waiting = run_folders(paths)
  except ReportError:
    return False
  ends = ("done.json", "error.json")
  return bool(folders) and not waiting and all(
    any((folder / end).exists() for end in ends) for folder in folders
  )  # fmt: skip
