"""Trains as sft.py, held near the organism on the prompts of its install."""

from ml_collections import ConfigDict

from configs.objectives import sft


def get_config() -> ConfigDict:
  c = sft.get_config()
  c.name = "kl_to_ref"
  c.train.objective = "kl_to_ref"
  c.train.options = {"beta": 1.0, "prompts": "install"}
  return c
