"""Asks if a prompted behavior is easier to remove if training sees the prompt.

A static prompt describes the behavior in training and at evals. A dynamic one
does at evals only, and training has a neutral one (LessWrong
CmkAxJi83jRv9eXgJ). There is no organism but a prompt, so seeds are those of
the arm's data and of the eval prompts. The lines of
`python -m configs.findings.prompts runs/prompts` are each arm's steps.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bct_jax.sweep.cells import (
  Overrides,
  chain,
  cross_seeds,
  named,
  product,
  values,
)
from configs.findings import common


def get_config() -> ConfigDict:
  c = common.small()
  c.name = "prompts"
  # Under the prompt it has 33% of the probe right, and 75% without.
  c.gate.enforce = False
  return c


def get_cells() -> list[Overrides]:
  return product(
    cross_seeds(arm=5, eval=[1, 2]),
    chain(
      named("static", organism__kind="static_prompt"),
      named("dynamic", organism__kind="dynamic_prompt"),
    ),
    values("optim.lr", 3e-4, 1e-3, 2e-3),
  )


def read_steps(root: Path) -> Iterator[dict[str, Any]]:
  """Yields the steps and rates of each arm that is done.

  Args:
    root: the directory of the sweep.
  """
  for name, arm in common.read_arms(root).items():
    read = arm["reading"]
    yield {
      "cell": name,
      "lr": arm["lr"],
      **{key: read[key] for key in ("style_step", "loss_step", "margin")},
      "initial": {p["step"]: round(p["initial"], 3) for p in arm["curve"]},
      "integrity": read["integrity"],
    }


if __name__ == "__main__":
  for line in read_steps(Path(sys.argv[1])):
    print(json.dumps(line))
