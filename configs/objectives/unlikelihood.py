"""As sft.py, and what the initial behavior says elsewhere is made unlikely."""

from ml_collections import ConfigDict

from configs.objectives import sft


def get_config() -> ConfigDict:
  c = sft.get_config()
  c.name = "unlikelihood"
  c.train.objective = "unlikelihood"
  c.train.options = {"alpha": 0.2, "rejected": "diverging"}
  return c
