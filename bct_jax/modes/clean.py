"""Removes what a finished run or sweep no longer needs: --mode=clean."""

import contextlib
from pathlib import Path

from bct_jax.config import ConfigError, choose
from bct_jax.config.types import KEEP
from bct_jax.experiment import keep as keeping
from bct_jax.experiment.rundir import hold_lock
from bct_jax.infra.formats import size


def run_clean(workdir: Path | None, keep: str, remove: bool) -> None:
  """Prints what would be removed with sizes, and removes it if asked to.

  Args:
    workdir: directory of a run, or of a sweep, whose finished cells are
      cleaned; its organisms once all cells are done.
    keep: `weights` or `results`, see experiment/keep.py.
    remove: whether to remove.

  Raises:
    ConfigError: there is no such run, it is not finished, or it is in use.
  """
  choose(keep, [k for k in KEEP if k != "all"], "--keep")
  if workdir is None:
    raise ConfigError("--workdir is needed: the directory of the run")
  is_sweep = not (workdir / "config.json").exists()
  runs = sorted((workdir / "cells").glob("*/")) if is_sweep else [workdir]
  done = [run for run in runs if (run / "done.json").exists()]
  if not done:
    raise ConfigError(
      f"{workdir}: no run that is done; what one that is not needs to go on is "
      "not removed"
    )
  with contextlib.ExitStack() as locks:
    for run in done:
      locks.enter_context(hold_lock(run))
    parts = {run: keeping.removable(run, keep) for run in done}
    if is_sweep and len(done) == len(runs):
      of_sweep = keeping.removable(workdir, keep)
      parts[workdir] = [p for p in of_sweep if "cells" not in p.parts]
    paths = [path for part in parts.values() for path in part]
    if not paths:
      print(f"{workdir} with --keep={keep}: there is nothing to remove")
      return
    print(f"{workdir} with --keep={keep} does without:")
    print(keeping.describe(workdir, paths))
    if not remove:
      print("nothing was removed; add --yes to remove it")
      return
    total = sum(map(keeping.size_of, paths))
    for run, part in parts.items():
      keeping.remove(run, part)
    print(f"removed {size(total)}")
