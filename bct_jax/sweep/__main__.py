"""Runs a sweep: python -m bct_jax.sweep --sweep=FILE --workdir=DIR [...].

Each cell has a run directory DIR/cells/NAME, whose organisms/ is a link to
DIR/organisms: what has the same hash is made once. Cells that differ in their
arm only share one plan, so one compiled step and sampler, and can be trained
together.
"""

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from bct_jax.config import ConfigError, choose
from bct_jax.config.config_files import config_values, find_config
from bct_jax.config.overrides import set_fields, take_fields
from bct_jax.infra import memory
from bct_jax.infra.command_help import format_help
from bct_jax.infra.exit_codes import (
  BAD_CONFIG,
  DONE,
  FAILED,
  MACHINE,
  MEMORY,
  PREEMPTED,
  explain,
  fail,
  take_debug,
)
from bct_jax.sweep.cells import Cell, make_cells, share
from bct_jax.sweep.dry_run import plan_lines
from bct_jax.sweep.run import LEASE, run_cells
from bct_jax.sweep.table import result_table

_USAGE = "python -m bct_jax.sweep --sweep=FILE --workdir=DIR [flags]"
_EXAMPLES = {
  "list the cells": (
    "python -m bct_jax.sweep --sweep=configs/sweeps/lr_quick.py --dry_run"
  ),
  "run them, or go on": "... --workdir=runs/lr",
  "share them: the same command on each machine": "... --workdir=runs/lr",
  "see how far it is": "... --workdir=runs/lr --status",
  "change a field in all cells": "... --config.eval.num_eval=64",
}
_FLAGS = (
  *("sweep", "workdir", "cells", "together", "vmap", "gates", "dry_run"),
  *("price_per_chip_hour", "status", "time", "lease", "resume", "debug"),
)


def main(argv: Sequence[str]) -> int:
  """Runs a sweep or goes on with it; returns its exit code."""
  # transformers would warn that torch is absent, which it is on purpose.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  try:
    options, cells = _read(take_debug(argv))
    with memory.name_shortage("running", ""):
      return DONE if options is None else _run(options, cells)
  except flags.Error as e:
    return fail(str(e))
  except BAD_CONFIG as e:
    return fail(explain(e, argv))
  except memory.OutOfMemory as e:
    return fail(str(e), MEMORY)
  except OSError as e:
    return fail(str(e), MACHINE)


def _read(argv: Sequence[str]) -> tuple[Any, list[Cell]]:
  """Reads the flags and the sweep file.

  Returns:
    The values of the flags, and all cells of the sweep; None and none after
      the help was printed.
  """
  values = _define_flags()
  if {"-h", "--help"} & {*argv[1:]}:
    known = {name: values[name] for name in _FLAGS}
    print(format_help(_USAGE, _EXAMPLES, {"flags": _FLAGS}, known))
    return None, []
  name = _sweep_of(argv)
  file = find_config(name, "sweep")
  # A sweep file is a config file with get_cells, so --config.x changes it.
  words, fields = take_fields(argv)
  sys.argv = words  # where ml_collections looks
  rest = values([words[0], f"--config={file}", *words[1:]])[1:]
  if rest:
    raise ConfigError(f"arguments that are not flags: {rest}")
  if values.price_per_chip_hour is not None and not values.dry_run:
    raise ConfigError("--price_per_chip_hour: only with --dry_run")
  if not (values.workdir or "").strip() and not values.dry_run:
    raise ConfigError("--workdir is needed: the directory of the sweep")
  choose(values.resume, ("latest", "latest_good"), "--resume")
  if not isinstance(values.config, ConfigDict):
    raise ConfigError(f"--sweep={name}: get_config must give a ConfigDict")
  path, *argument = file.split(":", 1)
  module = runpy.run_path(path)
  if "get_cells" not in module:
    raise ConfigError(f"--sweep={name}: get_cells() is missing")
  raw = config_values(values.config)
  set_fields(raw, fields)
  cells = make_cells(raw, module["get_cells"](*argument))
  return values, cells


def _define_flags() -> flags.FlagValues:
  """Defines the flags of the command, which are not those of the process."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file(
    "config",
    None,
    "The sweep file.",
    flag_values=values,
    lock_config=False,
    accept_new_attributes=True,  # see main.py
  )
  for name, default, text in (
    ("sweep", None, "A config file with get_cells(), in configs/."),
    ("workdir", None, "Directory of the sweep, made or resumed."),
    ("cells", "1/1", "The part i of n of the cells that this command runs."),
    (
      "resume",
      "latest",
      "latest: a damaged checkpoint is an error of its cell. latest_good: it "
      "is renamed, and training goes on from the one before, or begins anew.",
    ),
    (
      "price_per_chip_hour",
      None,
      "In a dry run: of the config's chip, as 1.2, or v5e=1.2,h100=2.5.",
    ),
  ):
    flags.DEFINE_string(name, default, text, flag_values=values)
  for name, default, text in (
    ("dry_run", False, "List the cells and what they cost; train nothing."),
    ("time", True, "In a dry run, time an update."),
    ("status", False, "Say how far each cell is; run nothing."),
    ("gates", False, "Make and check the organisms alone."),
    ("vmap", None, "Train --together in one program, or in turn."),
    ("debug", False, "Print the traceback of an error."),
  ):
    flags.DEFINE_bool(name, default, text, flag_values=values)
  flags.DEFINE_integer(
    "together", 1, "Cells trained at a time.", 1, flag_values=values
  )
  flags.DEFINE_float(
    "lease",
    LEASE,
    "Seconds without a sign of life after which the cells of another machine "
    "are taken over.",
    1.0,
    flag_values=values,
  )
  return values


def _sweep_of(argv: Sequence[str]) -> str:
  """Returns the sweep file, which decides what other flags there are.

  Raises:
    ConfigError: there is none, or more than one.
  """
  files = [
    value if equals else "".join(argv[i + 2 : i + 3])
    for i, word in enumerate(argv[1:])
    for name, equals, value in [word.partition("=")]
    if name in ("--sweep", "-sweep")
  ]
  if len(files) != 1 or not files[0]:
    raise ConfigError(f"--sweep={','.join(files)}: one sweep file is needed")
  return files[0]


def _run(options: Any, all_cells: Sequence[Cell]) -> int:
  """Runs this command's part of the cells; returns the exit code."""
  cells = share(all_cells, options.cells)
  if options.dry_run:
    lines = plan_lines(
      cells,
      options.time,
      options.together,
      options.vmap,
      options.price_per_chip_hour,
    )
    print("\n".join(lines))
    return DONE
  if options.status:
    from bct_jax.infra.remote_runs import local_copy
    from bct_jax.sweep.status import status_text

    print(status_text(cells, local_copy(options.workdir)))
    return DONE
  from bct_jax.infra.shared_files import open_workdir

  with open_workdir(options.workdir, options.lease) as root:
    return _run_in(options, root, cells, all_cells)


def _run_in(
  options: Any, root: Path, cells: Sequence[Cell], all_cells: Sequence[Cell]
) -> int:
  """Runs cells in the directory of the sweep; returns the exit code."""
  # JAX starts here, after all cells were found to be good.
  from bct_jax.infra import signals, trackers
  from bct_jax.infra.files import write_json
  from bct_jax.report import write_report
  from bct_jax.report.league import league_table
  from bct_jax.report.read.folders import PLAN, run_folders
  from bct_jax.runtime.programs import set_compilation_cache

  for cell in cells:
    trackers.check_packages(cell.config.log)
  if cells:
    set_compilation_cache(cells[0].config.compilation_cache)
  # The cells of all parts, so that a report knows which have not begun.
  write_json(root / PLAN, {"cells": [cell.name for cell in all_cells]})
  try:
    with signals.handle_signals():
      if options.gates:
        return _gates(cells, root)
      fall_back = options.resume == "latest_good"
      results = run_cells(
        cells, root, options.together, options.vmap, fall_back, options.lease
      )
  except signals.Preempted as e:
    return fail(f"stopped {e}; the same command goes on from here", PREEMPTED)
  print(result_table(results))
  if len({cell.config.name for cell in all_cells}) > 1:
    print(league_table([root], "markdown"), end="")
  if run_folders([root])[0]:
    print(f"report: {write_report([root], root / 'report.html')}")
  return FAILED if any("error" in r for r in results.values()) else DONE


def _gates(cells: Sequence[Cell], root: Path) -> int:
  """Makes the organisms alone and prints their gates; returns the exit code."""
  from bct_jax.sweep import organisms

  records = organisms.run_gates(cells, root)
  print(organisms.gate_table(records))
  passed = all("gate" in x and x["gate"]["passed"] for x in records.values())
  return DONE if passed else FAILED


if __name__ == "__main__":
  memory.keep_pages()
  sys.exit(main(sys.argv))
