"""Command line: python -m bct_jax.sweep --sweep=FILE --workdir=DIR [...].

Each cell has a run directory DIR/cells/NAME, whose organisms/ is a link to
DIR/organisms: what has the same hash is made once. Cells that differ in their
arm only share one plan, so one compiled step and sampler, and can be trained
together.
"""

import contextlib
import dataclasses
import os
import runpy
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
from absl import flags
from ml_collections import ConfigDict, config_flags

from bct_jax.cells import Cell, by_organism, make_cells, share
from bct_jax.config import ConfigError
from bct_jax.exits import DONE, FAILED, MACHINE, PREEMPTED, fail

Organism = tuple[str, dict[str, Any]] | None  # its hash and gate, once made


def main(argv: Sequence[str]) -> int:
  """Runs a sweep or goes on with it, and returns its exit code."""
  # It would tell that torch is absent, which is how it is meant.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  sys.path.append(str(Path(__file__).resolve().parent.parent))
  try:
    options, cells = _read(argv)
    return _run(options, cells)
  except flags.Error as e:
    return fail(str(e))
  except (AttributeError, ImportError, KeyError, SyntaxError) as e:
    return fail(str(e))
  except (TypeError, ValueError) as e:
    return fail(str(e.args[0] if len(e.args) == 1 else e))
  except OSError as e:
    return fail(str(e), MACHINE)


def _read(argv: Sequence[str]) -> tuple[Any, list[Cell]]:
  """Flags and the cells that this process is to run."""
  given = flags.FlagValues()
  config_flags.DEFINE_config_file(
    "config", None, "The sweep file.", flag_values=given
  )
  for name in ("sweep", "workdir"):
    flags.DEFINE_string(name, None, "See the README.", flag_values=given)
  flags.DEFINE_string("cells", "1/1", "Part i of n.", flag_values=given)
  flags.DEFINE_bool("dry_run", False, "Lists the cells.", flag_values=given)
  flags.DEFINE_bool(
    "time", True, "In a dry run, times an update.", flag_values=given
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
  return given, share(cells, given.cells)


def _run(options: Any, cells: Sequence[Cell]) -> int:
  if options.dry_run:
    lines = plan_lines(cells, options.time, options.together, options.vmap)
    print("\n".join(lines))
    return DONE
  # JAX starts here, after all cells were found to be good.
  from bct_jax import signals
  from bct_jax.report import write_report
  from bct_jax.runtime import keep_compiled

  root = Path(options.workdir)
  if cells:
    keep_compiled(cells[0].config.compilation_cache)
  try:
    with signals.heeded():
      results = run_cells(cells, root, options.together, options.vmap)
  except signals.Preempted as e:
    return fail(f"stopped {e}; the same command goes on from here", PREEMPTED)
  print(result_table(results))
  done = sorted(p.parent for p in root.glob("cells/*/result.json"))
  if done:
    print(f"report: {write_report(done, root / 'report.html')}")
  return FAILED if any("error" in r for r in results.values()) else DONE


def plan_lines(
  cells: Sequence[Cell],
  timed: bool,
  together: int = 1,
  vmap: bool | None = None,
) -> list[str]:
  """What would be run: cells by organism, with tokens, bytes and seconds.

  Seconds are those of the updates alone: a step that has compiled is timed on
  this machine, once for each organism's first cell. Checkpoints keep weights,
  and the state of the optimizer until an arm is done.
  """
  from bct_jax import groups, sizes

  lines, total = [], 0.0
  for number, group in enumerate(by_organism(cells), 1):
    plan = _plan(group)
    install = plan.install
    said = "" if install is None else (
      f", {plan.config.organism.train.steps} updates of the install"
    )  # fmt: skip
    lines.append(f"organism {number}, {len(group)} cells{said}")
    parts = groups.parts(group, together)
    if together > 1:
      forms = [groups.one_program(part, vmap) for part in parts]
      lines += [f"  {line}" for line in groups.part_lines(parts, forms)]
    step = _step_seconds(plan, group[0].name) if timed else None
    for cell in group:
      arm, data = plan.config.arms[cell.name], plan.arms[cell.name]
      steps = arm.train.steps
      tokens = sum(data.counts(s)["trained_tokens"] for s in range(steps))
      state = plan.runtime.abstract_state(arm.optim, arm.lora)
      memory = sizes.device_bytes(state.params) + sizes.device_bytes(
        state.opt_state
      )
      line = (
        f"  {cell.name}: {steps} updates, {tokens:,} trained tokens, "
        f"{memory / 2**20:,.0f} MiB of trained weights and optimizer state "
        "on a device and, until it is done, on disk"
      )
      if step is not None:
        total += steps * step
        line += f", {steps * step:,.0f} s"
      lines.append(line)
  if timed:
    lines.append(f"updates of all cells: {total:,.0f} s; evals come on top")
  return lines


def _plan(group: Sequence[Cell]) -> Any:
  from bct_jax.plan import make_plan

  arms = {c.name: c.config.arms[c.name] for c in group}
  return make_plan(dataclasses.replace(group[0].config, arms=arms))


def _step_seconds(plan: Any, name: str) -> float:
  """Seconds of an update of an arm, from the model's own weights.

  Raises:
    ConfigError: there is no such batch before there is an organism.
  """
  import jax
  import jax.numpy as jnp

  from bct_jax.mesh import put_batch
  from bct_jax.objectives import asks, objective_of, on_rollouts
  from bct_jax.training import fresh_state
  from bct_jax.weights import load_weights

  runtime, arm = plan.runtime, plan.config.arms[name]
  if on_rollouts(arm) or asks(objective_of(arm)).scored:
    raise ConfigError(
      f"cell {name}: an update of {arm.train.objective} needs what the "
      "organism gives, so none can be timed here; add --notime"
    )
  with jax.set_mesh(runtime.mesh):
    weights = load_weights(runtime, None)
    state, frozen, continued = fresh_state(runtime, arm, weights)
    step = runtime.step(arm, continued)
    batch = put_batch(plan.arms[name].batch(0), runtime.mesh)
    seconds = []
    for _ in range(3):  # the first one compiles
      start = time.monotonic()
      state, _ = step(state, frozen, batch, jnp.float32(0))
      jax.block_until_ready(state)
      seconds.append(time.monotonic() - start)
  return min(seconds[1:])


def run_cells(
  cells: Sequence[Cell],
  root: Path,
  together: int = 1,
  vmap: bool | None = None,
) -> dict[str, Mapping[str, Any]]:
  """Runs what is not done; returns each cell's arm, or {"error": text}.

  Args:
    cells: of the sweep.
    root: its directory.
    together: how many cells are trained at a time, if their arms allow it.
    vmap: see groups.one_program.

  Raises:
    ValueError: data or model of a cell does not fit, before any is trained.
    signals.Preempted: a signal asked to stop.
  """
  from bct_jax import groups

  by_one = by_organism(cells)
  parts = [groups.parts(group, together) for group in by_one]
  forms = [[groups.one_program(p, vmap) for p in of_one] for of_one in parts]
  todo = [[c for c in g if not _is_done(root, c)] for g in by_one]
  plans = [_plan(left) if left else None for left in todo]
  results: dict[str, Mapping[str, Any]] = {}
  for plan, of_one, how in zip(plans, parts, forms, strict=True):
    if together > 1:
      print(
        "\n".join(groups.part_lines(of_one, how)), file=sys.stderr, flush=True
      )
    organism: Organism = None
    for part, vmapped in zip(of_one, how, strict=True):
      left = [c for c in part if plan and c.name in plan.config.arms]
      made: dict[str, Mapping[str, Any]] = {}
      try:
        if plan and left:
          made, organism = _run_part(plan, left, root, organism, vmapped)
      except _failures() as e:
        made = {cell.name: {"error": str(e)} for cell in left}
      for cell in part:
        results[cell.name] = made.get(cell.name) or _finished(cell, root)
        if "error" in results[cell.name]:
          _keep_error(_folder(root, cell), results[cell.name]["error"])
        _tell(cell.name, results, len(cells))
  return results


def _folder(root: Path, cell: Cell) -> Path:
  return root / "cells" / cell.name


def _is_done(root: Path, cell: Cell) -> bool:
  return (_folder(root, cell) / "done.json").exists()


def _failures() -> tuple[type[Exception], ...]:
  """What ends a cell and not the sweep."""
  from bct_jax.gate import GateError
  from bct_jax.train import NumericalError

  return ValueError, GateError, NumericalError


def _keep_error(folder: Path, error: str) -> None:
  from bct_jax import metrics

  folder.mkdir(parents=True, exist_ok=True)
  metrics.write_json(folder / "error.json", {"error": error})


def _tell(name: str, results: Mapping[str, Mapping[str, Any]], n: int) -> None:
  arm = results[name]
  failed = "error" in arm
  print(
    f"cell {len(results)} of {n}, {name}: "
    f"{'failed: ' + arm['error'] if failed else arm['verdict']}",
    file=sys.stderr,
    flush=True,
  )


def _finished(cell: Cell, root: Path) -> Mapping[str, Any]:
  """The arm of a cell that is done; the error names a file that is gone."""
  from bct_jax import metrics, rundir
  from bct_jax.report.load import load_run

  folder = _folder(root, cell)
  try:
    rundir.keep_config(folder, cell.raw, {})
    load_run(folder)
    return metrics.read_json(folder / "result.json")["arms"][0]
  except ValueError as e:
    return {"error": str(e)}


def _run_part(
  plan: Any,
  cells: Sequence[Cell],
  root: Path,
  organism: Organism,
  vmap: bool,
) -> tuple[dict[str, Mapping[str, Any]], Organism]:
  """Trains and judges cells together; makes the organism unless it is given.

  Returns:
    Each cell's arm or {"error": text}, and the organism.
  """
  import jax

  from bct_jax import experiment, metrics, rundir, signals
  from bct_jax.arms import run_arms

  if signals.asked():
    raise signals.Preempted("between two cells")
  results: dict[str, Mapping[str, Any]] = {}
  folders: dict[str, Path] = {}
  with contextlib.ExitStack() as held:
    for cell in cells:
      folder = _folder(root, cell)
      try:
        held.enter_context(rundir.hold(folder))
        _begin(plan, cell, folder, root)
        folders[cell.name] = folder
      except ValueError as e:
        results[cell.name] = {"error": str(e)}
    if not folders:
      return results, organism
    held.enter_context(jax.set_mesh(plan.runtime.mesh))
    if organism is None:
      # Other machines of the sweep wait here rather than make it too.
      with filelock.FileLock(root / "organisms" / ".lock"):
        made, gate = experiment.make_organism(
          plan, next(iter(folders.values()))
        )
      organism = made.name, gate
    digest, gate = organism
    for name, arm in run_arms(plan, digest, folders, vmap).items():
      if isinstance(arm, Exception):
        results[name] = {"error": str(arm)}
        continue
      folder = folders[name]
      whole = folder / "organisms" / digest
      experiment.write_result(plan, folder, whole, gate, [arm])
      (folder / "error.json").unlink(missing_ok=True)
      metrics.write_json(folder / "done.json", {})
      results[name] = arm
  return results, organism


def _begin(plan: Any, cell: Cell, folder: Path, root: Path) -> None:
  """Writes what a run directory has before anything is trained."""
  from bct_jax import metrics, rundir

  rundir.keep_config(folder, cell.raw, {})
  (root / "organisms").mkdir(exist_ok=True)
  link = folder / "organisms"
  if not link.is_symlink():
    link.symlink_to(Path("..") / ".." / "organisms")
  metrics.write_json(folder / "env.json", rundir.environment(plan.runtime))


def result_table(results: Mapping[str, Mapping[str, Any]]) -> str:
  """What became of each cell, for the terminal."""
  width = max([4, *map(len, results)])
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
  return "\n".join(lines)


if __name__ == "__main__":
  sys.exit(main(sys.argv))
