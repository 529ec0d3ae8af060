"""Asks if a tenth of the learning rate fails in sixty times the updates.

What a high learning rate removes in S updates, one that is N times lower is
said not to remove in 6 N S; here N = 10. The report counts the pairs.

Follows LessWrong vKR9rHcWsMMr7BX4Q.
"""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, named, product
from configs.findings import common


def get_config() -> ConfigDict:
  c = common.small()
  c.name = "learning_rate"
  c.eval.steps = (4, 6, 8, 10, 12, 14, 32, 64, 128, 256, 512)
  return c


def get_cells() -> list[Overrides]:
  rates = chain(
    named("high", optim__lr=2e-3, train__steps=16),
    named("low", optim__lr=2e-4, train__steps=720),
  )
  return product(common.seeds(5), rates)
