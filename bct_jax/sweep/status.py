"""Says how far a sweep is, from its files alone: --status."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from bct_jax.evals.reading import words_of
from bct_jax.infra import files
from bct_jax.infra.visible import visible
from bct_jax.sweep.cell_growth import cell_folder, find_growth
from bct_jax.sweep.cells import Cell
from bct_jax.sweep.claims import read_claims

ORDER = ("running", "damaged", "failed", "stopped", "waits", "done")


def status_text(cells: Sequence[Cell], root: Path) -> str:
  """Writes a line for each cell, and how many are in which state.

  A cell is `running` if a process has claimed it; whether that process is alive
  is seen by the one that would take it over.

  Args:
    cells: of the sweep.
    root: its directory, which need not exist.
  """
  holders = {
    name: f"process {claim['process']} on {claim['host']}"
    for claim in read_claims(root).values()
    for name in claim["cells"]
  }
  width = max(len(cell.name) for cell in cells)
  states, lines = [], []
  for cell in cells:
    folder = cell_folder(root, cell)
    try:
      state, said = _state(cell, root, holders)
    except ValueError as e:
      state, said = "damaged", visible(str(e))
    except (KeyError, TypeError, IndexError, AttributeError) as e:
      state, said = "damaged", f"{folder}: a file lacks {visible(str(e))}"
    states.append(state)
    lines.append(f"{cell.name:{width}}  {state:7}  {said}".rstrip())
  counts = [f"{states.count(x)} {x}" for x in ORDER if x in states]
  return "\n".join([*lines, f"{len(cells)} cells: {', '.join(counts)}"])


def _state(
  cell: Cell, root: Path, holders: Mapping[str, str]
) -> tuple[str, str]:
  """Returns the state of a cell, one of ORDER, and what there is to say."""
  folder = cell_folder(root, cell)
  grown = find_growth(root, cell)
  if (folder / "done.json").exists() and grown is None:
    arms = files.read_json(folder / "result.json")["arms"]
    return "done", words_of(arms[0])
  if cell.name in holders:
    return "running", f"{_steps(cell, folder)}, {holders[cell.name]}"
  if (folder / "error.json").exists():
    return "failed", files.read_json(folder / "error.json")["error"]
  if (folder / "env.json").exists():
    said = f"to grow: {grown.sentence}" if grown else _steps(cell, folder)
    return ("waits" if grown else "stopped"), said
  return "waits", ""


def _steps(cell: Cell, folder: Path) -> str:
  """Says how many updates the newest arm of a cell has made."""
  for name, arm in reversed(list(cell.config.arms.items())):
    lines = files.read_lines(folder / "arms" / name / "metrics.jsonl")
    if lines:
      done = f"update {lines[-1]['step']} of {arm.train.steps}"
      return done if name == cell.name else f"{name}: {done}"
  return "no update yet"
