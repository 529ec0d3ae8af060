"""Makes a report again whenever files of its runs change."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bct_jax.infra.formats import duration
from bct_jax.report import write_report
from bct_jax.report.read.folders import run_folders
from bct_jax.report.read.types import ReportError

# The files that a report is made of, below a run directory.
_FILES = (
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

  A run with done.json is done, and so is a cell that failed; a sweep is done
  when all of its planned cells are. An open page reloads itself until then, as
  often as one looks at the files. Ctrl-C ends the watch too. A damaged or
  lost file is named on stderr, and read again when something changes.

  Args:
    paths: run or sweep directories, which must be there.
    out: the file of the report.
    figures_dir: the folder of figures, as in write_report.
    seconds: between two looks at the files.

  Raises:
    ReportError: one of the paths is no directory.
  """
  run_folders(paths)
  before = None
  try:
    while True:
      # The state is taken before the report reads the files, so that what
      # changes meanwhile is seen the next time.
      now, done = _state(paths), _is_done(paths)
      if now != before:
        _write(paths, out, figures_dir, None if done else max(seconds, 2.0))
      if done:
        return
      before = now
      time.sleep(seconds)
  except KeyboardInterrupt:
    return


def _write(
  paths: Sequence[Path],
  out: Path,
  figures_dir: Path | None,
  reload: float | None,
) -> None:
  """Writes the report, or says on stderr why it cannot be written.

  Args:
    paths, out, figures_dir, reload: as in write_report.
  """
  start = time.monotonic()
  try:
    write_report(paths, out, figures_dir, reload)
  except ReportError as e:
    print(f"{e}; looking again when it changes", file=sys.stderr, flush=True)
  else:
    print(f"{out} ({duration(time.monotonic() - start)})", flush=True)


def _state(paths: Sequence[Path]) -> dict[Path, tuple[int, int]]:
  """Returns time and size of every file that the report is made of."""
  folders = [*paths, *_run_folders(paths)]
  files = {p for f in folders for kind in _FILES for p in f.glob(kind)}
  state = {}
  for path in files:
    try:
      facts = path.stat()
    except FileNotFoundError:  # renamed or removed since it was listed
      continue
    state[path] = facts.st_mtime_ns, facts.st_size
  return state


def _run_folders(paths: Sequence[Path]) -> list[Path]:
  """Lists the runs of the paths; none while the plan of a sweep is damaged."""
  try:
    return run_folders(paths)[0]
  except ReportError:
    return []


def _is_done(paths: Sequence[Path]) -> bool:
  """Says whether every run has ended and every planned cell has begun."""
  try:
    folders, waiting = run_folders(paths)
  except ReportError:
    return False
  ends = ("done.json", "error.json")
  return bool(folders) and not waiting and all(
    any((folder / end).exists() for end in ends) for folder in folders
  )  # fmt: skip
