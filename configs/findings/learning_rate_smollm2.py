"""Repeats learning_rate.py on SmolLM2."""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, named, product
from configs.findings import common


def get_config() -> ConfigDict:
  c = common.smollm2()
  c.name = "learning_rate_smollm2"
  c.eval.steps = (4, 6, 8, 10, 12, 64, 128, 256, 512)
  return c


def get_cells() -> list[Overrides]:
  rates = chain(
    named("high", optim__lr=1e-4, train__steps=16),
    named("low", optim__lr=1e-5, train__steps=720),
  )
  return product(common.seeds(2), rates)
