"""Repeats rank.py on SmolLM2."""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, named, product
from configs.findings import common


def get_config() -> ConfigDict:
  c = common.smollm2()
  c.name = "rank_smollm2"
  c.optim.lr = 5e-5
  c.train.steps = 32
  return c


def get_cells() -> list[Overrides]:
  ranks = chain(
    named("rank1", organism__lora__rank=1, organism__optim__lr=2e-3),
    named("rank16", organism__lora__rank=16, organism__optim__lr=5e-4),
    named("full", organism__lora__rank=0),
  )
  return product(common.seeds(2), ranks)
