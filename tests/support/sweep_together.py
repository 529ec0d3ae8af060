"""A sweep of the tiny model whose cells can be trained together.

They differ in rate, schedule, seed (so in data and in the adapter's first
weights), decoration and last step. One diverges.
"""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides
from configs import tiny


def get_config() -> ConfigDict:
  c = tiny.get_config()
  c.arms = ConfigDict()
  c.lora.rank = 4
  c.optim.clip_norm = 0.5
  c.eval.num_eval = c.eval.num_heldout = c.eval.num_probe = 4
  c.eval.steps = ()
  c.sampling.max_new_tokens = 6
  c.sampling.temperature = 1.0
  return c


def get_cells() -> list[Overrides]:
  return [
    {"optim.lr": 1e-2, "optim.schedule": "linear"},
    {"optim.lr": 1e36, "train.seed": 2},
    {"optim.lr": 1e-3, "train.seed": 1, "train.decoration": "plain"},
    {"optim.lr": 3e-3, "train.steps": 3, "train.checkpoint_every": 1},
  ]
