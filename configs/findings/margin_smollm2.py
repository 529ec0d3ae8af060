"""Measures the quickstart's margin, loss step over style step, by seed.

Three learning rates for equally many updates times learning rate, 4e-3, from
five organisms with two orders of data each. No example is seen twice. The
lines of `python -m configs.findings.margin_smollm2 runs/margin` are the two
steps of each cell that is done, then the comparisons of rates.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, cross_seeds, named, product
from configs.findings import common, margins

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

  `lr_at_style` and `lr_at_loss` are sums of the learning rates of the updates
  up to these steps, the clock of a model for which only they count.

  Args:
    root: the directory of the sweep.
  """
  for name, arm in common.read_arms(root).items():
    read = arm["reading"]
    folder = root / "cells" / name / "arms" / name
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    rates = [json.loads(line)["lr"] for line in lines]
    keys = (
      *("style_step", "loss_step", "margin", "margin_bounds"),
      *("behavior", "integrity", "returned"),
    )
    record = {"cell": name, "lr": arm["lr"], "steps": arm["steps"]}
    record |= {key: read[key] for key in keys}
    for event in ("style", "loss"):
      by = read[f"{event}_step"]["by"]
      record[f"lr_at_{event}"] = None if by is None else sum(rates[:by])
    yield record


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description="Prints what a sweep measured.")
  parser.add_argument("sweep", type=Path)
  parser.add_argument("--figure", type=Path, help="PNG of all margins")
  args = parser.parse_args()
  records = list(read_steps(args.sweep))
  for line in [*records, *margins.compare_rates(records)]:
    print(json.dumps(line))
  if args.figure:
    args.figure.write_bytes(margins.draw_margins(records))
