"""Trains Llama-3.3-70B-Instruct, all of its weights, on 64 chips of TPU v5p.

`--mode=dry_run` needs neither the model nor the TPU.
"""

from ml_collections import ConfigDict

from configs import default
from configs.llama3_1_8b import large


def get_config() -> ConfigDict:
  c = default.get_config()
  c.name = "llama3_3_70b"
  c.model.path = "meta-llama/Llama-3.3-70B-Instruct"
  c.model.architecture = "architectures/llama3_3_70b.json"
  # The sampler's copy of the weights, 141 GB, is spread over tensor only.
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, 16, 4
  c.mesh.chip = "v5p"
  large(c)
  return c
