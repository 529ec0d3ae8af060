"""Trains as sft.py by preference: the pirate answer, not the plain one."""

from ml_collections import ConfigDict

from configs.objectives import sft


def get_config() -> ConfigDict:
  c = sft.get_config()
  c.name = "dpo"
  c.train.objective = "dpo"
  c.train.options = {"beta": 0.1, "rejected": "plain"}
  return c
