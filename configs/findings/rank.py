"""Asks if a behavior that a low-rank adapter installed is easier to remove.

Organisms are made with adapters of several ranks, merged, and with all weights;
all weights of each are then trained in the same way. The higher the rank, the
more robust the behavior was found to be (LessWrong CmkAxJi83jRv9eXgJ).
"""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, named, product, values
from configs.findings import common


def get_config() -> ConfigDict:
  c = common.small()
  c.name = "rank"
  return c


def get_cells() -> list[Overrides]:
  ranks = chain(
    named("rank1", organism__lora__rank=1, organism__optim__lr=3e-3),
    named("rank16", organism__lora__rank=16, organism__optim__lr=1e-3),
    named("rank64", organism__lora__rank=64, organism__optim__lr=1e-3),
    named("full", organism__lora__rank=0),
  )
  return product(ranks, common.seeds(5), values("optim.lr", 1e-3, 2e-3))
