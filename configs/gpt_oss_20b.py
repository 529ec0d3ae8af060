"""Trains gpt-oss-20b, all weights of its 32 experts, on 8 H100.

The weights are read from MXFP4 and trained as float32. `--mode=dry_run` needs
neither the model nor the GPUs.
"""

from ml_collections import ConfigDict

from configs import default
from configs.llama3_1_8b import large


def get_config() -> ConfigDict:
  c = default.get_config()
  c.name = "gpt_oss_20b"
  c.model.path = "openai/gpt-oss-20b"
  c.model.architecture = "architectures/gpt_oss_20b.json"
  # 2 of 8 key and value heads and 8 of 32 experts on a tensor device.
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, 2, 4
  c.mesh.chip = "h100"
  large(c)
  c.organism.train.batch_size = c.train.batch_size = 16
  return c
