"""Asks if a prompted behavior is easier to remove if training sees the prompt.

A static prompt describes the behavior in training and at evals. A dynamic one
does at evals only, and training has a neutral one (LessWrong
CmkAxJi83jRv9eXgJ).
"""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, named, product, values
from configs.findings import common


def get_config() -> ConfigDict:
  c = common.small()
  c.name = "prompts"
  return c


def get_cells() -> list[Overrides]:
  return product(
    chain(
      named("static", organism__kind="static_prompt"),
      named("dynamic", organism__kind="dynamic_prompt"),
    ),
    values("optim.lr", 3e-4, 1e-3, 2e-3),
    values("train.seed", *range(5)),
  )
