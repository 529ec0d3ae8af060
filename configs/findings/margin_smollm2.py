"""Measures the quickstart's margin, loss step over style step, by seed.

Three learning rates for equally many updates times learning rate, 4e-3, from
five organisms with two orders of data each. No example is seen twice. The
lines of `python -m configs.findings.margin_smollm2 runs/margin` are the two
steps of each cell that is done.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, cross_seeds, named, product
from configs.findings import common

_RATES = {"lr1e-4": (1e-4, 40), "lr3e-5": (3e-5, 133), "lr1e-5": (1e-5, 400)}


def get_config() -> ConfigDict:
  c = common.smollm2()
  c.name = "margin_smollm2"
  c.train.num_examples = c.train.batch_size * 400
  c.train.checkpoint_every = 100
  c.eval.steps = (4, 8, 16, 32, 64, 128, 256)
  c.eval.refine = True
  return c


def get_cells() -> list[Overrides]:
  rates = chain(
    *(
      named(name, optim__lr=lr, train__steps=steps)
      for name, (lr, steps) in _RATES.items()
    )
  )
  return product(cross_seeds(organism=5, arm=2), rates)


def read_steps(root: Path) -> Iterator[dict[str, Any]]:
  """Yields the steps of each cell of a sweep that is done, by name.

  Args:
    root: the directory of the sweep.
  """
  for name, arm in common.read_arms(root).items():
    read = arm["reading"]
    keys = (
      *("style_step", "loss_step", "margin", "margin_bounds"),
      *("behavior", "integrity", "returned"),
    )
    yield {
      **{"cell": name, "lr": arm["lr"], "steps": arm["steps"]},
      **{key: read[key] for key in keys},
    }


if __name__ == "__main__":
  for line in read_steps(Path(sys.argv[1])):
    print(json.dumps(line))
