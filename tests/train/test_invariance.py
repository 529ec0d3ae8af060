"""Loss, gradients and weights depend on nothing but examples and optimizer.

Not on the mesh, accumulation, packing, remat, the loop over layers, the chunk
of the head or the number of processes, to 1e-5 in float32. Every pair of values
of two of these meets in one of the cells; most of them run in CI only.
"""

import itertools
import json

import jax
import numpy as np
import pytest
from conftest import QUICK
from invariance import VALUES, Cell, dataset, run
from workers import run_workers


def pairs_of(cell: Cell) -> set:
  return set(itertools.combinations(zip(VALUES, cell, strict=True), 2))


def covering() -> list[Cell]:
  """Cells that hold all pairs of values, those with most new ones first."""
  cells = [Cell(*values) for values in itertools.product(*VALUES.values())]
  left = set().union(*map(pairs_of, cells))
  out = []
  while left:
    best = max(cells, key=lambda cell: len(pairs_of(cell) & left))
    out.append(best)
    left -= pairs_of(best)
  return out


CELLS = covering()[1:]  # The first is the reference.
# With all devices in use, as several processes have them.
SHARED = [
  Cell((4, 1, 1), 2, True, "full", True, 3),
  Cell((2, 2, 1), 1, False, "dots", False, 1),
  Cell((1, 2, 2), 4, True, "none", True, 3),
  Cell((1, 1, 4), 1, True, "dots", True, 64),
]
# Four processes take what is split by rows and by weights at a time.
SPLITS = {2: SHARED[::3], 4: SHARED[1:3]}


@pytest.fixture(scope="module")
def reference():
  out = run(Cell())
  # Every update moves all weights by far more than what may differ.
  before = run(Cell(), updates=2)["params"]
  pairs = map(jax.tree.leaves, (before, out["params"]))
  for a, b in zip(*pairs, strict=True):
    assert np.abs(a - b).max() > 1e-4 * np.abs(b).max()
  return out


def check(found: dict, reference: dict) -> None:
  for name in ("loss", "grad_norm"):
    np.testing.assert_allclose(found[name], reference[name], rtol=1e-5)
  ours, theirs = map(jax.tree.leaves, (found["params"], reference["params"]))
  for a, b in zip(ours, theirs, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
  "cell",
  [
    pytest.param(cell, marks=[pytest.mark.long] if i else [])
    for i, cell in enumerate(CELLS)
  ],
  ids=lambda cell: "-".join(map(str, cell)).replace(" ", ""),
)
def test_one_process(cell, reference):
  check(run(cell), reference)


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("count", SPLITS)
def test_several_processes(count, reference, tmp_path):
  file = tmp_path / "found.npz"
  flags = f"--xla_force_host_platform_device_count={4 // count}" + QUICK
  cells = [json.dumps(cell._asdict()) for cell in SPLITS[count]]
  run_workers("invariance.py", count, file, *cells, XLA_FLAGS=flags)
  saved = np.load(file)
  for i in range(len(cells)):
    found = {k: saved[f"{i}/{k}"] for k in ("loss", "grad_norm")}
    leaves = jax.tree.leaves(reference["params"])
    params = [saved[f"{i}/params/{n}"] for n in range(len(leaves))]
    check({**found, "params": params}, reference)


def test_the_examples_can_tell():
  """Rows of unequal length and weight, several in a packed row."""
  padded, packed = (dataset(Cell(pack=pack), 3) for pack in (False, True))
  trained = (padded.batch(0).weights > 0).sum(axis=1)
  assert trained.max() >= 4 * trained.min()
  assert packed.batch(0).segments.max() >= 2
  assert packed.layout.rows < padded.layout.rows
