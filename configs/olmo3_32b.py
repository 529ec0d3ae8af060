"""Trains Olmo-3.1-32B-Instruct, all of its weights, on 16 H100.

`--mode=dry_run` needs neither the model nor the GPUs.
"""

from ml_collections import ConfigDict

from configs import olmo3_7b


def get_config() -> ConfigDict:
  c = olmo3_7b.get_config()
  c.name = "olmo3_32b"
  c.model.path = "allenai/Olmo-3.1-32B-Instruct"
  c.model.architecture = "architectures/olmo3_32b.json"
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, 8, 2
  return c
