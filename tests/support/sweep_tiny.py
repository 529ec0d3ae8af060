"""A sweep of the tiny model for tests: one cell of three diverges."""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, values
from configs import tiny


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.arms = ConfigDict()
  return c


def get_cells() -> list[Overrides]:
  return values("optim.lr", 1e-4, 1e36, 1e-2)
