"""Runs every stage on a random two-layer model, for tests.

Nothing is learned.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  c = default.get_config()
  c.name = "tiny"
  c.model.path = "demo:tiny"
  c.max_length = 256
  for run in (c.organism, c):
    run.train.steps = 4
    run.train.batch_size = 8
    run.train.num_examples = 16
    run.train.checkpoint_every = 2
    run.optim.lr = 1e-3
  c.train.decoration = "pirate"
  c.reversal.steps = 4
  c.arms.low = {"optim": {"lr": 1e-4}}
  c.arms.high = {"optim": {"lr": 1e-2}, "train": {"accum": 2}}
  c.eval.num_eval = 8
  c.eval.num_heldout = 8
  c.eval.num_probe = 8
  c.eval.steps = (2,)
  c.sampling.batch_size = 8
  c.sampling.max_new_tokens = 12
  # A random model cannot hold a behavior; the gate is recorded, not enforced.
  c.gate.enforce = False
  return c
