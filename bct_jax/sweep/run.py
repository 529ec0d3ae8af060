"""Runs the cells of a sweep, each in a run directory of its own."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from bct_jax.infra import files, memory, remote_runs
from bct_jax.infra.locks import wait_for_lock
from bct_jax.infra.progress import log_line
from bct_jax.infra.visible import visible
from bct_jax.sweep.cell_growth import cell_folder, earlier_counts, is_done
from bct_jax.sweep.cells import Cell, group_by_organism
from bct_jax.sweep.claims import Claims
from bct_jax.sweep.groups import make_room, plan_of
from bct_jax.sweep.table import report_cell, result_table

# Seconds without a sign of life after which a machine counts as gone.
LEASE = 120.0
# Hash and gate of an organism; None before it is made.
Organism = tuple[str, dict[str, Any]] | None
# The records of a cell's arms, or the error that ended it.
CellOutcome = list[Mapping[str, Any]] | Exception


@dataclasses.dataclass
class _Group:
  """Holds cells that are trained together.

  Attributes:
    cells: of the group.
    plan: of those cells of their organism that were not done at first.
    vmap: whether one program trains them.
    organism: is shared by all groups of an organism; empty until it is made.
  """

  cells: Sequence[Cell]
  plan: Any
  vmap: bool
  organism: dict[str, Organism]


def run_cells(
  cells: Sequence[Cell],
  root: Path,
  together: int = 1,
  vmap: bool | None = None,
  fall_back: bool = False,
  lease: float = LEASE,
) -> dict[str, Mapping[str, Any]]:
  """Runs the cells that are not done, and waits for those of other machines.

  Args:
    cells: of the sweep.
    root: its directory.
    together: how many cells are trained at a time, if their arms allow it.
    vmap: see groups.can_share_program.
    fall_back: whether damaged checkpoints are set aside.
    lease: seconds without a sign of life after which the cells of another
      machine are taken over, see claims.py.

  Returns:
    The record of each arm by its name, or {"error": text} by the name of a cell
    that failed. The arm of a cell has the cell's name, and its controls follow.

  Raises:
    ValueError: data or model of a cell does not fit, before any is trained.
    signals.Preempted: a signal asked to stop.
  """
  results: dict[str, Mapping[str, Any]] = {}
  claims, last = Claims(root, lease), None
  waiting = _make_groups(cells, root, together, vmap, fall_back)
  elsewhere: set[str] = set()  # groups that another machine had
  with claims.beating():
    while waiting:
      ended = []
      for group in waiting:
        name = group.cells[0].name
        rest = [c for c in group.cells if not is_done(root, c)]
        failed = name in elsewhere and all(_failed(root, c) for c in rest)
        outcomes: dict[str, CellOutcome] = {}
        if rest and not failed:
          if not claims.take([c.name for c in group.cells]):
            elsewhere.add(name)
            continue
          try:
            make_room(last, rest[0])
            last = rest[0]
            outcomes = _run_group(group, rest, root)
          finally:
            claims.release(name)
        ended.append(group)
        _record(group, outcomes, results, cells, root)
      waiting = [group for group in waiting if group not in ended]
      if waiting and not ended:
        _wait(waiting, lease)
  order = [c.name for c in cells]
  return dict(
    sorted(results.items(), key=lambda x: order.index(_cell_of(x[0], order)))
  )


def _cell_of(arm: str, cells: Sequence[str]) -> str:
  """Returns the cell that an arm is of: a control has its arm's name first."""
  return arm if arm in cells else arm.rpartition(".")[0]


def _wait(groups: Sequence[_Group], lease: float) -> None:
  """Waits a moment for groups that other machines have.

  Raises:
    signals.Preempted: a signal asked to stop.
  """
  from bct_jax.infra import signals

  names = ", ".join(c.name for group in groups for c in group.cells)
  print(f"waiting for other machines: {names}", file=sys.stderr, flush=True)
  end = time.monotonic() + lease / 2
  while time.monotonic() < end:
    if signals.stop_requested():
      raise signals.Preempted("while others had the rest")
    time.sleep(min(0.5, lease / 10))


def _make_groups(
  cells: Sequence[Cell],
  root: Path,
  together: int,
  vmap: bool | None,
  fall_back: bool,
) -> list[_Group]:
  """Groups cells that are trained together; plans what is not done."""
  from bct_jax.sweep import groups

  out = []
  for of_organism in group_by_organism(cells):
    parts = groups.groups_trained_together(of_organism, together)
    todo = [c for c in of_organism if not is_done(root, c)]
    plan = None
    if todo:
      plan = dataclasses.replace(
        _dated_plan(todo, root),
        fall_back=fall_back,
        earlier=earlier_counts(of_organism, root),
      )
    experts = plan is not None and plan.runtime.model.config.num_experts > 0
    forms = [groups.can_share_program(part, vmap, experts) for part in parts]
    if together > 1:
      lines = groups.describe_groups(parts, forms)
      print("\n".join(lines), file=sys.stderr, flush=True)
    made: dict[str, Organism] = {}
    pairs = zip(parts, forms, strict=True)
    out += [_Group(part, plan, form, made) for part, form in pairs]
  return out


def _run_group(
  group: _Group, cells: Sequence[Cell], root: Path
) -> dict[str, CellOutcome]:
  """Runs cells of a group; an error that ends all of them is that of each."""
  try:
    with memory.name_shortage("running", ""):
      outcomes, organism = _run_part(
        group.plan, cells, root, group.organism.get("made"), group.vmap
      )
    group.organism["made"] = organism
    return outcomes
  except failed_cells() as e:
    # Without the traceback, whose frames hold arrays.
    return {cell.name: ValueError(str(e)) for cell in cells}


def _record(
  group: _Group,
  outcomes: Mapping[str, CellOutcome],
  results: dict[str, Mapping[str, Any]],
  cells: Sequence[Cell],
  root: Path,
) -> None:
  """Adds the arms of a group to the results of all cells, and reports them."""
  for cell in group.cells:
    outcome = outcomes.get(cell.name) or read_finished(cell, root)
    if isinstance(outcome, Exception):
      error = visible(str(outcome))
      results[cell.name] = {"error": error}
      write_error(cell_folder(root, cell), error)
    else:
      results.update({arm["name"]: arm for arm in outcome})
    count = len({*results} & {c.name for c in cells})
    title = f"cell {count} of {len(cells)}, {cell.name}"
    report_cell(title, results[cell.name])
  ahead = [c.name for c in cells if c.name not in results]
  if ahead and sys.stderr.isatty():
    print(result_table(results, ahead), file=sys.stderr, flush=True)


def _failed(root: Path, cell: Cell) -> bool:
  """Tells whether a cell has an error and is not done."""
  return (cell_folder(root, cell) / "error.json").exists()


def _dated_plan(cells: Sequence[Cell], root: Path) -> Any:
  """Makes the plan of cells; the chat template prints the day of the sweep.

  That is the day on which the first cell began whose template prints one.
  """
  from bct_jax.experiment.rundir import with_template_date

  plan = plan_of(cells)
  template = plan.runtime.chat.template
  if not template.prints_date:
    return plan
  path = root / "template_date.json"
  with filelock.FileLock(root / ".template_date.lock"):
    if not path.exists():
      files.write_json(path, template.date)
    day = files.read_json(path)
  return plan_of(
    [
      dataclasses.replace(c, config=with_template_date(c.config, day))
      for c in cells
    ]
  )


def failed_cells() -> tuple[type[Exception], ...]:
  """Lists the exceptions that end a cell and not the sweep."""
  from bct_jax.evals.gate import GateError
  from bct_jax.infra.memory import OutOfMemory
  from bct_jax.train.step import NumericalError

  return ValueError, GateError, NumericalError, OutOfMemory


def write_error(folder: Path, error: str) -> None:
  """Writes error.json, for reports."""
  from bct_jax.infra.files import write_json

  folder.mkdir(parents=True, exist_ok=True)
  write_json(folder / "error.json", {"error": error})


def read_finished(cell: Cell, root: Path) -> CellOutcome:
  """Reads the arms of a cell that is done; returns an error for a lost file."""
  from bct_jax.experiment import rundir
  from bct_jax.infra.files import read_json
  from bct_jax.report.read.load import load_run

  folder = cell_folder(root, cell)
  if not is_done(root, cell) and _failed(root, cell):  # on another machine
    return ValueError(read_json(folder / "error.json")["error"])
  if not (folder / "config.json").exists():
    log_line(f"cell {cell.name}: config.json is missing: written again")
  try:
    rundir.keep_config(folder, cell.raw, {})
    for note in load_run(folder).notes:
      log_line(f"cell {cell.name}: {note}")
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
  """Trains and judges cells together.

  Args:
    plan: of the cells' organism.
    cells: to train together.
    root: directory of the sweep.
    organism: None if it is still to be made.
    vmap: whether one program trains the cells.

  Returns:
    The outcome of each cell, and the organism.
  """
  import jax

  from bct_jax.experiment import rundir
  from bct_jax.experiment.organism import make_organism
  from bct_jax.infra import signals

  if signals.stop_requested():
    raise signals.Preempted("between two cells")
  results: dict[str, CellOutcome] = {}
  begun: list[Cell] = []
  with contextlib.ExitStack() as contexts:
    for cell in cells:
      folder = cell_folder(root, cell)
      try:
        contexts.enter_context(rundir.lock_run(folder))
        _begin(plan, cell, folder, root)
        begun.append(cell)
      except ValueError as e:
        results[cell.name] = e
    if not begun:
      return results, organism
    contexts.enter_context(jax.set_mesh(plan.runtime.mesh))
    if organism is None:
      # Other machines of the sweep wait here rather than make it too.
      lock = root / "organisms" / ".lock"
      with wait_for_lock(lock, "an organism", log_line):
        folder, gate = make_organism(plan, cell_folder(root, begun[0]))
      organism = folder.name, gate
    arms = _run_arms(plan, begun, root, organism[0], vmap)
    for cell in begun:
      results[cell.name] = _end(plan, cell, root, organism, arms)
  return results, organism


def _run_arms(
  plan: Any, cells: Sequence[Cell], root: Path, digest: str, vmap: bool
) -> dict[str, Any]:
  """Trains the arms of cells together; controls come after their arm.

  A control may begin with the weights that its arm ended with. Cells with
  controls are therefore trained alone.

  Returns:
    What arms.run_arms returns, for the arms of all cells.
  """
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
  """Writes the files that a run directory has before anything is trained."""
  from bct_jax.experiment import rundir
  from bct_jax.experiment.environment import write_environment
  from bct_jax.experiment.growth import begin_growth, prepare_growth
  from bct_jax.interop import judge

  if (folder / "result.json").exists() and not (folder / "done.json").exists():
    log_line(
      f"cell {cell.name}: done.json is missing: what else is there is checked"
    )
  if grown := rundir.keep_config(folder, cell.raw, {}):
    begin_growth(plan, folder, grown, cell.raw, {})
  prepare_growth(plan, folder)  # the plan has the counts of all cells
  rundir.keep_template_date(folder, plan, cell.raw, {})
  (root / "organisms").mkdir(exist_ok=True)
  link = folder / "organisms"
  if not link.is_symlink():
    link.symlink_to(Path("..") / ".." / "organisms")
    remote_runs.note_link(link)
  if plan.judge is not None:
    # Cells share the replies, as they share organisms.
    link = folder / judge.FILE
    if not link.is_symlink():
      link.symlink_to(Path("..") / ".." / judge.FILE)
      remote_runs.note_link(link)
    plan.judge.open(root / judge.FILE)
  rundir.keep_setting_files(folder, plan)
  write_environment(folder, plan.runtime, plan.setting_files)


def _end(
  plan: Any,
  cell: Cell,
  root: Path,
  organism: tuple[str, dict[str, Any]],
  arms: Mapping[str, Any],
) -> CellOutcome:
  """Writes the result of a cell, or returns the error that ended an arm."""
  from bct_jax.experiment import keep, run
  from bct_jax.infra.done_file import write_done

  records = [arms[name] for name in cell.config.arms if name in arms]
  errors = [record for record in records if isinstance(record, Exception)]
  if errors:
    return errors[0]
  folder, (digest, gate) = cell_folder(root, cell), organism
  leaks = run.find_leaks(plan, list(cell.config.arms))
  organism_folder = folder / "organisms" / digest
  run.write_result(plan, folder, organism_folder, gate, records, leaks)
  files.delete(folder / "error.json")
  write_done(folder, digest)
  keep.remove(folder, keep.removable(folder, cell.config.keep))
  return records
