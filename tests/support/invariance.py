"""Updates of one small problem, run in one of many equal ways.

Used by test_invariance.py in its process, and as a program for a cell that
several processes run together:

python invariance.py RANK COUNT PORT FILE CELL [CELL ...], CELL as JSON. Process
0 writes what `run` gives to FILE.
"""

import json
import sys
from typing import NamedTuple


class Cell(NamedTuple):
  """One way; none of these may change loss, gradients or weights."""

  mesh: tuple[int, int, int] = (1, 1, 1)
  accum: int = 1
  pack: bool = False
  remat: str = "none"
  scan: bool = True  # over the layers; else a loop
  chunk: int = 64  # trained positions at a time


# Every value that is tried, the first of each in the reference.
VALUES = {
  "mesh": ((1, 1, 1), (4, 1, 1), (2, 2, 1), (1, 2, 2), (1, 1, 4)),
  "accum": (1, 2, 4),
  "pack": (False, True),
  "remat": ("none", "dots", "full"),
  "scan": (True, False),
  "chunk": (64, 3, 1),
}


def dataset(cell: Cell, updates: int):
  """16 examples of 3 to 30 ids, of which 1 to 8 are trained, per update."""
  import numpy as np

  from bct_jax.data.batches import Dataset
  from bct_jax.data.chat import Tokens

  rng = np.random.default_rng(0)
  rows = []
  for _ in range(16 * updates):
    prompt, answer = int(rng.integers(2, 22)), int(rng.integers(1, 9))
    ids = tuple(map(int, rng.integers(0, 96, prompt + answer)))
    rows.append(Tokens(ids, (0.0,) * prompt + (1.0,) * answer))
  names = [str(i) for i in range(len(rows))]
  parts = cell.mesh[0] * cell.mesh[1] * cell.accum
  return Dataset.make(names, rows, 16, 0, 64, updates, cell.pack, parts)


def run(cell: Cell, updates: int = 3) -> dict:
  """Loss and gradient norm of each update, and the params after the last.

  By gradient descent with momentum: Adam turns a gradient that is all rounding
  into a whole step.
  """
  import jax.numpy as jnp
  import optax
  from helpers import make_mesh, make_step, run_steps

  from bct_jax import mesh as meshes
  from bct_jax.models.logprobs import token_logprobs
  from bct_jax.types import Mean

  def objective(params, batch, rng, model):
    if not cell.scan:
      params = model.unstack(params)
    logprobs, weights = token_logprobs(model, params, batch, cell.chunk)
    return Mean(-jnp.sum(weights * logprobs), jnp.sum(weights)), {}

  setup = make_step(
    objective,
    make_mesh(*cell.mesh),
    cell.accum,
    remat=cell.remat,
    tx=optax.trace(0.9),
  )
  data = dataset(cell, updates)
  batches = [data.batch(t) for t in range(updates)]
  metrics, _, state = run_steps(setup, batches, lr=0.03, fetch=False)
  return {
    "loss": [m["loss"] for m in metrics],
    "grad_norm": [m["grad_norm"] for m in metrics],
    "params": meshes.to_host(state.params),
  }


def main(rank: int, count: int, port: int, file: str, *cells: str) -> None:
  import jax

  jax.distributed.initialize(
    f"127.0.0.1:{port}", num_processes=count, process_id=rank
  )
  import numpy as np

  out = {}
  for i, text in enumerate(cells):
    found = run(Cell(**json.loads(text)))
    leaves = jax.tree.leaves(found.pop("params"))
    out |= {f"{i}/{name}": value for name, value in found.items()}
    out |= {f"{i}/params/{n}": leaf for n, leaf in enumerate(leaves)}
  if rank == 0:
    np.savez(file, **out)


if __name__ == "__main__":
  main(*map(int, sys.argv[1:4]), *sys.argv[4:])
