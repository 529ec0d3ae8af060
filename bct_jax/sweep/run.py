"""Runs the cells of a sweep, each in a run directory of its own."""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from bct_jax.sweep.cells import Cell, group_by_organism
from bct_jax.sweep.groups import make_room, plan_of

Organism = tuple[str, dict[str, Any]] | None  # its hash and gate, once made
# The arms of a cell, or what ended it.
CellOutcome = list[Mapping[str, Any]] | Exception


def run_cells(
  cells: Sequence[Cell],
  root: Path,
  together: int = 1,
  vmap: bool | None = None,
) -> dict[str, Mapping[str, Any]]:
  """Runs what is not done; returns each arm, or {"error": text} of a cell.

  The arm of a cell has its name; its controls are behind it.

  Args:
    cells: of the sweep.
    root: its directory.
    together: how many cells are trained at a time, if their arms allow it.
    vmap: see groups.one_program.

  Raises:
    ValueError: data or model of a cell does not fit, before any is trained.
    signals.Preempted: a signal asked to stop.
  """
  from bct_jax.sweep import groups

  by_one = group_by_organism(cells)
  parts = [groups.groups_trained_together(group, together) for group in by_one]
  forms = [
    [groups.can_share_program(p, vmap) for p in of_one] for of_one in parts
  ]
  todo = [[c for c in g if not _is_done(root, c)] for g in by_one]
  plans = [plan_of(left) if left else None for left in todo]
  results: dict[str, Mapping[str, Any]] = {}
  count, last = 0, None
  for plan, of_one, how in zip(plans, parts, forms, strict=True):
    if together > 1:
      print(
        "\n".join(groups.describe_groups(of_one, how)),
        file=sys.stderr,
        flush=True,
      )
    organism: Organism = None
    for part, vmapped in zip(of_one, how, strict=True):
      left = [c for c in part if plan and c.name in plan.config.arms]
      made: dict[str, CellOutcome] = {}
      try:
        if plan and left:
          make_room(last, left[0])
          last = left[0]
          made, organism = _run_part(plan, left, root, organism, vmapped)
      except failed_cells() as e:
        made = {cell.name: e for cell in left}
      for cell in part:
        count += 1
        found = made.get(cell.name) or read_finished(cell, root)
        if isinstance(found, Exception):
          results[cell.name] = {"error": str(found)}
          write_error(cell_folder(root, cell), str(found))
        else:
          results |= {arm["name"]: arm for arm in found}
        report_cell(
          f"cell {count} of {len(cells)}, {cell.name}", results[cell.name]
        )
      ahead = [c.name for c in cells if c.name not in results]
      if ahead and sys.stderr.isatty():
        print(result_table(results, ahead), file=sys.stderr, flush=True)
  return results


def cell_folder(root: Path, cell: Cell) -> Path:
  return root / "cells" / cell.name


def _is_done(root: Path, cell: Cell) -> bool:
  return (cell_folder(root, cell) / "done.json").exists()


def failed_cells() -> tuple[type[Exception], ...]:
  """What ends a cell and not the sweep."""
  from bct_jax.evals.gate import GateError
  from bct_jax.train.step import NumericalError

  return ValueError, GateError, NumericalError


def write_error(folder: Path, error: str) -> None:
  from bct_jax.infra.files import write_json

  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / "error.json", {"error": error})


def report_cell(name: str, arm: Mapping[str, Any]) -> None:
  failed = "error" in arm
  print(
    f"{name}: {'failed: ' + arm['error'] if failed else arm['verdict']}",
    file=sys.stderr,
    flush=True,
  )


def read_finished(cell: Cell, root: Path) -> CellOutcome:
  """The arms of a cell that is done, or an error that names a lost file."""
  from bct_jax.experiment import rundir
  from bct_jax.infra import progress
  from bct_jax.infra.files import read_json
  from bct_jax.report.read.load import load_run

  folder = cell_folder(root, cell)
  if not (folder / "config.json").exists():
    progress.log_line(
      f"cell {cell.name}: config.json is missing: written again"
    )
  try:
    rundir.keep_config(folder, cell.raw, {})
    for note in load_run(folder).notes:
      progress.log_line(f"cell {cell.name}: {note}")
    return read_json(folder / "result.json")["arms"]
  except ValueError as e:
    return e


def _run_part(
  plan: Any,
  cells: Sequence[Cell],
  root: Path,
  organism: Organism,
  vmap: bool,
) -> tuple[dict[str, CellOutcome], Organism]:
  """Trains and judges cells together; makes the organism unless it is given.

  Returns:
    What became of each cell, and the organism.
  """
  import jax

  from bct_jax.experiment import rundir
  from bct_jax.experiment.organism import make_organism
  from bct_jax.infra import signals

  if signals.stop_requested():
    raise signals.Preempted("between two cells")
  results: dict[str, CellOutcome] = {}
  begun: list[Cell] = []
  with contextlib.ExitStack() as held:
    for cell in cells:
      folder = cell_folder(root, cell)
      try:
        held.enter_context(rundir.lock_run(folder))
        _begin(plan, cell, folder, root)
        begun.append(cell)
      except ValueError as e:
        results[cell.name] = e
    if not begun:
      return results, organism
    held.enter_context(jax.set_mesh(plan.runtime.mesh))
    if organism is None:
      # Other machines of the sweep wait here rather than make it too.
      with filelock.FileLock(root / "organisms" / ".lock"):
        made, gate = make_organism(plan, cell_folder(root, begun[0]))
      organism = made.name, gate
    arms = _run_arms(plan, begun, root, organism[0], vmap)
    for cell in begun:
      results[cell.name] = _end(plan, cell, root, organism, arms)
  return results, organism


def _run_arms(
  plan: Any, cells: Sequence[Cell], root: Path, digest: str, vmap: bool
) -> dict[str, Any]:
  """The arm of each cell, trained together, or of a cell alone and then its
  controls, which may begin with what it ended with; see arms.run_arms."""
  from bct_jax.experiment.arms import run_arms

  folders = {cell.name: cell_folder(root, cell) for cell in cells}
  out: dict[str, Any] = run_arms(plan, digest, folders, vmap)
  for cell in cells:
    for name in list(cell.config.arms)[1:]:
      if isinstance(out[cell.name], Exception):
        break
      out |= run_arms(plan, digest, {name: folders[cell.name]})
  return out


def _begin(plan: Any, cell: Cell, folder: Path, root: Path) -> None:
  """Writes what a run directory has before anything is trained."""
  from bct_jax.experiment import rundir
  from bct_jax.infra import progress
  from bct_jax.infra.files import write_json

  if (folder / "result.json").exists():
    progress.log_line(
      f"cell {cell.name}: done.json is missing: what else is there is checked"
    )
  rundir.keep_config(folder, cell.raw, {})
  (root / "organisms").mkdir(exist_ok=True)
  link = folder / "organisms"
  if not link.is_symlink():
    link.symlink_to(Path("..") / ".." / "organisms")
  write_json(folder / "env.json", rundir.environment(plan.runtime))


def _end(
  plan: Any,
  cell: Cell,
  root: Path,
  organism: tuple[str, dict[str, Any]],
  arms: Mapping[str, Any],
) -> CellOutcome:
  """Writes the result of a cell whose arms are done; else what ended one."""
  from bct_jax.experiment import run
  from bct_jax.experiment.rundir import write_done

  found = [arms[name] for name in cell.config.arms if name in arms]
  failed = [arm for arm in found if isinstance(arm, Exception)]
  if failed:
    return failed[0]
  folder, (digest, gate) = cell_folder(root, cell), organism
  shared = run.find_leaks(plan, list(cell.config.arms))
  whole = folder / "organisms" / digest
  run.write_result(plan, folder, whole, gate, found, shared)
  (folder / "error.json").unlink(missing_ok=True)
  write_done(folder, digest)
  return found


def result_table(
  results: Mapping[str, Mapping[str, Any]], waiting: Sequence[str] = ()
) -> str:
  """What became of each cell, and which wait, for the terminal."""
  from bct_jax.evals.schema import Reach, shown_shares

  names = shown_shares(Reach.TABLE)
  width = max([4, *map(len, [*results, *waiting])])
  lines = [f"{'cell':{width}}  {'lr':>8}  {'verdict':12} {' '.join(names)}"]
  for name, arm in results.items():
    if "error" in arm:
      lines.append(f"{name:{width}}  failed: {arm['error']}")
      continue
    last = arm["curve"][-1]
    # An arm from before something was measured lacks it.
    rates = " ".join(
      f"{last[k]:{len(k)}.0%}" if k in last else f"{'–':>{len(k)}}"
      for k in names
    )
    lines.append(
      f"{name:{width}}  {arm['lr']:8.2g}  {arm['verdict']:12} {rates}"
    )
  return "\n".join(lines + [f"{name:{width}}  waits" for name in waiting])
