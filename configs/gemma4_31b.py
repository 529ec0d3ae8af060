"""Trains Gemma-4-31B, the weights of its language model, on 8 H100.

Five of six layers see 1,024 tokens. `--mode=dry_run` needs neither the model
nor the GPUs.
"""

from ml_collections import ConfigDict

from configs import default
from configs.llama3_1_8b import large


def get_config() -> ConfigDict:
  c = default.get_config()
  c.name = "gemma4_31b"
  c.model.path = "google/gemma-4-31B-it"
  c.model.architecture = "architectures/gemma4_31b.json"
  # Layers without a window have 4 key heads, one on a tensor device.
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, 2, 4
  c.mesh.chip = "h100"
  large(c)
  c.organism.train.batch_size = c.train.batch_size = 16
  return c
