"""Trains as sft.py, and makes unlikely what the initial behavior says."""

from ml_collections import ConfigDict

from configs.objectives import sft


def get_config() -> ConfigDict:
  c = sft.get_config()
  c.name = "unlikelihood"
  c.train.objective = "unlikelihood"
  c.train.options = {"alpha": 0.2, "rejected": "diverging"}
  return c
