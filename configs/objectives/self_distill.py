"""Trains as sft.py on what the organism says when asked to be a pirate.

Completions are drawn under the request, and learned without it.
"""

from ml_collections import ConfigDict

from configs.objectives import sft


def get_config() -> ConfigDict:
  c = sft.get_config()
  c.name = "self_distill"
  c.train.objective = "self_distill"
  c.train.source = "on_policy"
  c.train.on_policy.prompt = "inoculation"
  # At temperature 1 SmolLM2 rarely ends such an answer within 24 tokens.
  c.train.on_policy.temperature = 0.7
  c.train.on_policy.attempts = 8
  c.train.on_policy.min_accepted = 0.25
  return c
