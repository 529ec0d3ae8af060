"""Trains Qwen3-30B-A3B, all weights of its 128 experts, on 8 H100.

`--mode=dry_run` needs neither the model nor the GPUs.
"""

from ml_collections import ConfigDict

from configs import default
from configs.llama3_1_8b import large


def get_config() -> ConfigDict:
  c = default.get_config()
  c.name = "qwen3_30b_a3b"
  c.model.path = "Qwen/Qwen3-30B-A3B"
  c.model.architecture = "architectures/qwen3_30b_a3b.json"
  # One of 4 key and value heads and 32 of 128 experts on a tensor device.
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, 2, 4
  c.mesh.chip = "h100"
  large(c)
  c.organism.train.batch_size = c.train.batch_size = 16
  return c
