"""Command line: python -m bct_jax.sweep --sweep=FILE --workdir=DIR [...].

Each cell has a run directory DIR/cells/NAME, whose organisms/ is a link to
DIR/organisms: what has the same hash is made once. Cells that differ in their
arm only share one plan, so one compiled step and sampler, and can be trained
together.
"""

import contextlib
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
from absl import flags
from ml_collections import ConfigDict, config_flags

from bct_jax.config import ConfigError
from bct_jax.infra import memory
from bct_jax.infra.exit_codes import (
  BAD_CONFIG,
  DONE,
  FAILED,
  MACHINE,
  PREEMPTED,
  explain,
  fail,
)
from bct_jax.sweep.cells import Cell, by_organism, make_cells, share
from bct_jax.sweep.dry_run import make_room, plan_lines, plan_of

Organism = tuple[str, dict[str, Any]] | None  # its hash and gate, once made
Found = list[Mapping[str, Any]] | Exception  # a cell's arms, or what ended it


def main(argv: Sequence[str]) -> int:
  """Runs a sweep or goes on with it, and returns its exit code."""
  # It would tell that torch is absent, which is how it is meant.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  sys.path.append(str(Path(__file__).resolve().parents[2]))
  try:
    options, cells = _read(argv)
    return _run(options, cells)
  except flags.Error as e:
    return fail(str(e))
  except BAD_CONFIG as e:
    return fail(explain(e, argv))
  except OSError as e:
    return fail(str(e), MACHINE)


def _read(argv: Sequence[str]) -> tuple[Any, list[Cell]]:
  """Flags and all cells."""
  given = flags.FlagValues()
  config_flags.DEFINE_config_file(
    "config",
    None,
    "The sweep file.",
    flag_values=given,
    lock_config=False,
    accept_new_attributes=True,  # see main.py
  )
  for name in ("sweep", "workdir"):
    flags.DEFINE_string(name, None, "See the README.", flag_values=given)
  flags.DEFINE_string("cells", "1/1", "Part i of n.", flag_values=given)
  flags.DEFINE_bool("dry_run", False, "Lists the cells.", flag_values=given)
  flags.DEFINE_bool(
    "time", True, "In a dry run, times an update.", flag_values=given
  )
  flags.DEFINE_bool(
    "gates", False, "Makes and checks organisms only.", flag_values=given
  )
  flags.DEFINE_integer(
    "together", 1, "Cells trained at a time.", 1, flag_values=given
  )
  flags.DEFINE_bool(
    "vmap", None, "In one program, or in turn.", flag_values=given
  )
  files = [a.split("=", 1)[1] for a in argv if a.startswith("--sweep=")]
  if len(files) != 1 or not Path(files[0]).is_file():
    raise ConfigError(f"--sweep={','.join(files)}: one sweep file is needed")
  # A sweep file is a config file with get_cells, so --config.x changes it.
  left = given([argv[0], f"--config={files[0]}", *argv[1:]])[1:]
  if left:
    raise ConfigError(f"arguments that are not flags: {left}")
  if given.workdir is None and not given.dry_run:
    raise ConfigError("--workdir is needed: the directory of the sweep")
  if not isinstance(given.config, ConfigDict):
    raise ConfigError(f"--sweep={files[0]}: get_config must give a ConfigDict")
  module = runpy.run_path(files[0])
  if "get_cells" not in module:
    raise ConfigError(f"--sweep={files[0]}: get_cells() is missing")
  cells = make_cells(given.config.to_dict(), module["get_cells"]())
  return given, cells


def _run(options: Any, every: Sequence[Cell]) -> int:
  cells = share(every, options.cells)
  if options.dry_run:
    lines = plan_lines(cells, options.time, options.together, options.vmap)
    print("\n".join(lines))
    return DONE
  # JAX starts here, after all cells were found to be good.
  from bct_jax.infra import signals, trackers
  from bct_jax.infra.files import write_json
  from bct_jax.report import write_report
  from bct_jax.report.read.folders import PLAN, run_folders
  from bct_jax.runtime.programs import keep_compiled

  root = Path(options.workdir)
  for cell in cells:
    trackers.check(cell.config.log)
  if cells:
    keep_compiled(cells[0].config.compilation_cache)
  # All of them, so that a report knows which have not begun.
  write_json(root / PLAN, {"cells": [cell.name for cell in every]})
  try:
    with signals.heeded():
      if options.gates:
        return _gates(cells, root)
      results = run_cells(cells, root, options.together, options.vmap)
  except signals.Preempted as e:
    return fail(f"stopped {e}; the same command goes on from here", PREEMPTED)
  print(result_table(results))
  if run_folders([root])[0]:
    print(f"report: {write_report([root], root / 'report.html')}")
  return FAILED if any("error" in r for r in results.values()) else DONE


def _gates(cells: Sequence[Cell], root: Path) -> int:
  """Makes the organisms alone; prints how they and their gates are."""
  from bct_jax.sweep import organisms

  found = organisms.run_gates(cells, root)
  print(organisms.gate_table(found))
  fine = all("gate" in x and x["gate"]["passed"] for x in found.values())
  return DONE if fine else FAILED


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

  by_one = by_organism(cells)
  parts = [groups.parts(group, together) for group in by_one]
  forms = [[groups.one_program(p, vmap) for p in of_one] for of_one in parts]
  todo = [[c for c in g if not _is_done(root, c)] for g in by_one]
  plans = [plan_of(left) if left else None for left in todo]
  results: dict[str, Mapping[str, Any]] = {}
  count, last = 0, None
  for plan, of_one, how in zip(plans, parts, forms, strict=True):
    if together > 1:
      print(
        "\n".join(groups.part_lines(of_one, how)), file=sys.stderr, flush=True
      )
    organism: Organism = None
    for part, vmapped in zip(of_one, how, strict=True):
      left = [c for c in part if plan and c.name in plan.config.arms]
      made: dict[str, Found] = {}
      try:
        if plan and left:
          make_room(last, left[0])
          last = left[0]
          made, organism = _run_part(plan, left, root, organism, vmapped)
      except _failures() as e:
        made = {cell.name: e for cell in left}
      for cell in part:
        count += 1
        found = made.get(cell.name) or _finished(cell, root)
        if isinstance(found, Exception):
          results[cell.name] = {"error": str(found)}
          _keep_error(_folder(root, cell), str(found))
        else:
          results |= {arm["name"]: arm for arm in found}
        _tell(f"cell {count} of {len(cells)}, {cell.name}", results[cell.name])
      ahead = [c.name for c in cells if c.name not in results]
      if ahead and sys.stderr.isatty():
        print(result_table(results, ahead), file=sys.stderr, flush=True)
  return results


def _folder(root: Path, cell: Cell) -> Path:
  return root / "cells" / cell.name


def _is_done(root: Path, cell: Cell) -> bool:
  return (_folder(root, cell) / "done.json").exists()


def _failures() -> tuple[type[Exception], ...]:
  """What ends a cell and not the sweep."""
  from bct_jax.evals.gate import GateError
  from bct_jax.train.step import NumericalError

  return ValueError, GateError, NumericalError


def _keep_error(folder: Path, error: str) -> None:
  from bct_jax.infra.files import write_json

  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / "error.json", {"error": error})


def _tell(name: str, arm: Mapping[str, Any]) -> None:
  failed = "error" in arm
  print(
    f"{name}: {'failed: ' + arm['error'] if failed else arm['verdict']}",
    file=sys.stderr,
    flush=True,
  )


def _finished(cell: Cell, root: Path) -> Found:
  """The arms of a cell that is done, or an error that names a lost file."""
  from bct_jax.experiment import rundir
  from bct_jax.infra import progress
  from bct_jax.infra.files import read_json
  from bct_jax.report.read.load import load_run

  folder = _folder(root, cell)
  if not (folder / "config.json").exists():
    progress.say(f"cell {cell.name}: config.json is missing: written again")
  try:
    rundir.keep_config(folder, cell.raw, {})
    for note in load_run(folder).notes:
      progress.say(f"cell {cell.name}: {note}")
    return read_json(folder / "result.json")["arms"]
  except ValueError as e:
    return e


def _run_part(
  plan: Any,
  cells: Sequence[Cell],
  root: Path,
  organism: Organism,
  vmap: bool,
) -> tuple[dict[str, Found], Organism]:
  """Trains and judges cells together; makes the organism unless it is given.

  Returns:
    What became of each cell, and the organism.
  """
  import jax

  from bct_jax.experiment import run, rundir
  from bct_jax.infra import signals

  if signals.asked():
    raise signals.Preempted("between two cells")
  results: dict[str, Found] = {}
  begun: list[Cell] = []
  with contextlib.ExitStack() as held:
    for cell in cells:
      folder = _folder(root, cell)
      try:
        held.enter_context(rundir.hold(folder))
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
        made, gate = run.make_organism(plan, _folder(root, begun[0]))
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

  folders = {cell.name: _folder(root, cell) for cell in cells}
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
    progress.say(
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
) -> Found:
  """Writes the result of a cell whose arms are done; else what ended one."""
  from bct_jax.experiment import run
  from bct_jax.infra.files import write_done

  found = [arms[name] for name in cell.config.arms if name in arms]
  failed = [arm for arm in found if isinstance(arm, Exception)]
  if failed:
    return failed[0]
  folder, (digest, gate) = _folder(root, cell), organism
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
  width = max([4, *map(len, [*results, *waiting])])
  lines = [
    f"{'cell':{width}}  {'lr':>8}  {'verdict':12} initial alternate other "
    "agreed capability"
  ]
  for name, arm in results.items():
    if "error" in arm:
      lines.append(f"{name:{width}}  failed: {arm['error']}")
      continue
    last = arm["curve"][-1]
    lines.append(
      f"{name:{width}}  {arm['lr']:8.2g}  {arm['verdict']:12} "
      f"{last['initial']:7.0%} {last['alternate']:9.0%} {last['other']:5.0%} "
      f"{last['agreed']:6.0%} {last['capability']:10.0%}"
    )
  return "\n".join(lines + [f"{name:{width}}  waits" for name in waiting])


if __name__ == "__main__":
  memory.keep_pages()
  sys.exit(main(sys.argv))
