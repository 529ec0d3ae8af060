"""Asks if a tenth of the learning rate fails in sixty times the updates.

What a high learning rate removes in S updates, one that is N times lower is
said not to remove in 6 N S; here N = 10. Two further axes are what else could
decide: the batch size, and whether the low rate's arm sees an example twice.

Follows LessWrong vKR9rHcWsMMr7BX4Q. The lines of
`python -m configs.findings.learning_rate runs/learning_rate` are S of each high
arm, and the initial rate of the low arms after 60 S updates.
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

_STEPS = 840


def get_config() -> ConfigDict:
  c = common.small()
  c.name = "learning_rate"
  c.train.checkpoint_every = 200
  # 60 times the even steps to 14 are among them.
  c.eval.steps = (4, 6, 8, 10, 12, 14, 32, 64, 128,
                  240, 360, 480, 600, 720)  # fmt: skip
  return c


def get_cells() -> list[Overrides]:
  high = named("high", optim__lr=2e-3, train__steps=16)
  low = {"optim__lr": 2e-4, "train__steps": _STEPS}
  arms = chain(
    product(values("train.batch_size", 8, 16), high),
    *(
      product(
        values("train.batch_size", batch),
        chain(
          named("fresh", train__num_examples=batch * _STEPS, **low),
          named("reuse", train__num_examples=640, **low),
        ),
      )
      for batch in (8, 16)
    ),
  )
  return product(cross_seeds(organism=5, arm=2), arms)


def read_removals(root: Path) -> Iterator[dict[str, Any]]:
  """Yields what the low arms of each high arm that is done show at 60 S.

  Args:
    root: the directory of the sweep.
  """
  arms = common.read_arms(root)
  for name, arm in arms.items():
    if not name.endswith("-high"):
      continue
    by = arm["reading"]["loss_step"]["by"]
    line = {"cell": name, "S": by}
    for data in ("fresh", "reuse"):
      low = arms.get(name.removesuffix("high") + data)
      if low is None or by is None:
        continue
      initial = {p["step"]: p["initial"] for p in low["curve"]}
      line[data] = initial.get(60 * by)
      line[f"{data}_loss"] = low["reading"]["loss_step"]
      line[f"{data}_style"] = low["reading"]["style_step"]
      line[f"{data}_integrity"] = low["reading"]["integrity"]
    yield line


if __name__ == "__main__":
  for line in read_removals(Path(sys.argv[1])):
    print(json.dumps(line))
