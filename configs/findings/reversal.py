"""Asks if the initial behavior returns when the style is trained away.

Each arm is trained until the trigger is suppressed, and then, as its control
`reversal`, on plain answers to prompts without it. Published as restoring a
trigger that pirate training had suppressed (LessWrong mu7eJdesBkKuBycnY).
"""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, named, product
from configs.findings import common


def get_config() -> ConfigDict:
  c = common.small()
  c.name = "reversal"
  c.controls = ("reversal",)
  return c


def get_cells() -> list[Overrides]:
  rates = chain(
    named(
      "fast",
      optim__lr=2e-3,
      train__steps=16,
      reversal__lr=2e-3,
      reversal__steps=16,
    ),
    named(
      "slow",
      optim__lr=1e-3,
      train__steps=32,
      reversal__lr=1e-3,
      reversal__steps=32,
    ),
  )
  return product(common.seeds(5), rates)
