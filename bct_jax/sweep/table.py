"""Says in the terminal what became of the cells of a sweep."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bct_jax.evals.reading import words_of
from bct_jax.evals.schema import Reach, shown_shares
from bct_jax.infra.formats import number, percent


def result_table(
  results: Mapping[str, Mapping[str, Any]], waiting: Sequence[str] = ()
) -> str:
  """Writes a table of cells for the terminal.

  Args:
    results: what `run_cells` returns.
    waiting: names of cells that have not been run yet.
  """
  names = shown_shares(Reach.TABLE)
  width = max([4, *map(len, [*results, *waiting])])
  words = {k: words_of(arm) for k, arm in results.items() if "error" not in arm}
  wide = max([len("reading"), *map(len, words.values())])
  lines = [f"{'cell':{width}}  {'lr':>8}  {'reading':{wide}} {' '.join(names)}"]
  for name, arm in results.items():
    if "error" in arm:
      lines.append(f"{name:{width}}  failed: {arm['error']}")
      continue
    last = arm["curve"][-1]
    # An arm from before something was measured lacks it.
    rates = " ".join(
      f"{percent(last[k]) if k in last else '–':>{len(k)}}" for k in names
    )
    lr = number(arm["lr"])
    lines.append(f"{name:{width}}  {lr:>8}  {words[name]:{wide}} {rates}")
  return "\n".join(lines + [f"{name:{width}}  waits" for name in waiting])


def report_cell(name: str, arm: Mapping[str, Any]) -> None:
  """Prints the words of a cell's arm, or its error, to stderr."""
  failed = "error" in arm
  print(
    f"{name}: {'failed: ' + arm['error'] if failed else words_of(arm)}",
    file=sys.stderr,
    flush=True,
  )
