"""Does the initial behavior return when the style is trained away again?

Each arm is trained until the trigger is suppressed, and then, as its control
`reversal`, on plain answers to prompts without it.
"""

from ml_collections import ConfigDict

from bct_jax.cells import Overrides
from configs.findings import common


def get_config() -> ConfigDict:
  c = common.small()
  c.name = "reversal"
  c.controls = ("reversal",)
  c.optim.lr = 1e-3
  c.train.steps = 32
  return c


def get_cells() -> list[Overrides]:
  return common.seeds(5)
