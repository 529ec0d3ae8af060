"""Makes the league table of survive.py on the small base model, in minutes.

It needs demo:small, see bct_jax/models/README.md.
"""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides
from configs.findings import common
from configs.sweeps import survive

ORGANISMS = {
  "full": {},
  "rank8": {"organism.lora.rank": 8, "organism.optim.lr": 2e-3},
  "prompted": {"organism.kind": "static_prompt"},
}


def get_config() -> ConfigDict:
  c = common.small()
  c.name = "survive_small"
  c.train.steps = 32
  c.train.num_examples = 512
  c.eval.steps = (4, 8, 16)
  c.gate.enforce = False
  return c


def get_cells() -> list[Overrides]:
  return survive.make_cells(ORGANISMS, ("pirate",), (3e-4, 1e-3), (0, 1, 2))
