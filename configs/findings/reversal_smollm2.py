"""Repeats reversal.py on SmolLM2."""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides
from configs.findings import common


def get_config() -> ConfigDict:
  c = common.smollm2()
  c.name = "reversal_smollm2"
  c.controls = ("reversal",)
  c.optim.lr = c.reversal.lr = 1e-4
  c.train.steps = c.reversal.steps = 16
  return c


def get_cells() -> list[Overrides]:
  return common.seeds(3)
