"""Trains Qwen3.5-9B, the weights of its language model, on 8 H100.

Three of four layers have linear attention. `--mode=dry_run` needs neither the
model nor the GPUs.
"""

from ml_collections import ConfigDict

from configs import default
from configs.llama3_1_8b import large


def get_config() -> ConfigDict:
  c = default.get_config()
  c.name = "qwen3_5_9b"
  c.model.path = "Qwen/Qwen3.5-9B"
  c.model.architecture = "architectures/qwen3_5_9b.json"
  # One of 4 key and value heads and 4 of 16 key heads of linear layers on a
  # tensor device.
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, 2, 4
  c.mesh.chip = "h100"
  large(c)
  return c
