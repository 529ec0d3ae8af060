"""Asks if the initial behavior returns when the style is trained away.

Each arm is trained until the trigger is suppressed, and then, as its control
`reversal`, on plain answers to prompts without it, at three learning rates.
Published as restoring a trigger that pirate training had suppressed (LessWrong
mu7eJdesBkKuBycnY). The lines of
`python -m configs.findings.reversal runs/reversal` are the initial rates of
each reversal that is done, by its updates.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, cross_seeds, named, product
from configs.findings import common


def get_config() -> ConfigDict:
  c = common.small()
  c.name = "reversal"
  c.controls = ("reversal",)
  c.optim.lr = 2e-3
  c.train.steps = 16
  c.reversal.steps = 64
  c.eval.steps = (2, 4, 8)
  return c


def get_cells() -> list[Overrides]:
  rates = chain(
    *(named(f"back{lr:g}", reversal__lr=lr) for lr in (2e-4, 6e-4, 2e-3))
  )
  return product(cross_seeds(organism=5, arm=2), rates)


def read_returns(root: Path) -> Iterator[dict[str, Any]]:
  """Yields the initial rate of each reversal before it and at its evals.

  Args:
    root: the directory of the sweep.
  """
  for name, arm in common.read_arms(root).items():
    if arm["control"] != "reversal":
      continue
    curve = arm["curve"]
    yield {
      "cell": name,
      "initial": {p["step"]: round(p["initial"], 3) for p in curve},
      "style": {p["step"]: round(p["agreed_decorated"], 3) for p in curve},
      "integrity": arm["reading"]["integrity"],
    }


if __name__ == "__main__":
  for line in read_returns(Path(sys.argv[1])):
    print(json.dumps(line))
