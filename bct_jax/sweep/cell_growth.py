"""Lets the cells of a sweep grow as a run does: more eval prompts, controls.

Raise `eval.num_eval`, `num_heldout` or `num_probe`, or add `controls`, and run
the sweep again. What experiment/growth.py says of a run holds for each cell.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bct_jax.sweep.cells import Cell


def cell_folder(root: Path, cell: Cell) -> Path:
  """Returns the run directory of a cell."""
  return root / "cells" / cell.name


def find_growth(root: Path, cell: Cell) -> Any:
  """Returns what a cell's config adds to its run; None where it adds nothing.

  Another difference, or a damaged file, is an error of the cell once it is read
  or goes on.

  Returns:
    A growth.Growth, or None.
  """
  from bct_jax.experiment import rundir

  folder = cell_folder(root, cell)
  if not all((folder / name).exists() for name in ("config.json", "organisms")):
    return None  # it has not begun
  try:
    return rundir.keep_config(folder, cell.raw, {})
  except ValueError:
    return None


def is_done(root: Path, cell: Cell) -> bool:
  """Tells whether a cell has ended, with all that its config asks for."""
  done = (cell_folder(root, cell) / "done.json").exists()
  return done and find_growth(root, cell) is None


def earlier_counts(
  cells: Sequence[Cell], root: Path
) -> tuple[dict[str, int], ...]:
  """Returns `Plan.earlier`: how many prompts any of the cells had before.

  Cells that share an organism share its rollouts and the row ids of prompts,
  also one that begins after the others grew.

  Args:
    cells: of one organism.
    root: directory of the sweep.
  """
  from bct_jax.experiment import growth
  from bct_jax.experiment.plan import COUNTS

  counts = set()
  for cell in cells:
    found = find_growth(root, cell)
    if found is not None and found.prompts:
      now = {field: getattr(cell.config.eval, field) for field in COUNTS}
      then = now | {field: old for field, (old, _) in found.prompts.items()}
      counts.add(tuple(then[field] for field in COUNTS))
    try:
      records = growth.records(cell_folder(root, cell))
    except ValueError:  # of the cell's own, see `find_growth`
      continue
    asked = [x["eval"] for x in records if x["prompts"]]
    counts |= {tuple(x[split] for split in COUNTS.values()) for x in asked}
  ordered = sorted(counts, key=lambda count: (sum(count), count))
  return tuple(dict(zip(COUNTS.values(), c, strict=True)) for c in ordered)
