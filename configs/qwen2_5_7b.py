"""Trains Qwen2.5-7B-Instruct, all of its weights, on a TPU v5p-8.

`--mode=dry_run` needs neither the model nor the TPU.
"""

from ml_collections import ConfigDict

from configs import default
from configs.llama3_1_8b import large


def get_config() -> ConfigDict:
  c = default.get_config()
  c.name = "qwen2_5_7b"
  c.model.path = "Qwen/Qwen2.5-7B-Instruct"
  c.model.architecture = "architectures/qwen2_5_7b.json"
  # A v5p-8 has 8 cores in 4 chips, and a chip is one device.
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, 4, 1
  c.mesh.chip = "v5p"
  large(c)
  return c
