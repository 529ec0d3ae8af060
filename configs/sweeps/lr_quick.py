"""Sweeps six learning rates over a factor of 30: adapters of one organism."""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, values
from configs import quickstart


def get_config() -> ConfigDict:
  c = quickstart.get_config()
  c.name = "lr_quick"
  c.arms = ConfigDict()
  c.lora.rank = 8
  c.train.steps = 36
  c.eval.steps = (4, 8, 16, 32)
  c.eval.refine = False
  return c


def get_cells() -> list[Overrides]:
  return values("optim.lr", 3e-5, 6e-5, 1.2e-4, 2.4e-4, 4.8e-4, 9e-4)
