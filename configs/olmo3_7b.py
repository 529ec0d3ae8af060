"""Trains Olmo-3-7B-Instruct, all of its weights, on 8 H100.

Of Olmo 3 all stages are public: base, SFT, DPO and RL, with their data. So a
behavior that one stage installed can be trained on from there. `--mode=dry_run`
needs neither the model nor the GPUs.
"""

from ml_collections import ConfigDict

from configs import default
from configs.llama3_1_8b import large


def get_config() -> ConfigDict:
  c = default.get_config()
  c.name = "olmo3_7b"
  c.model.path = "allenai/Olmo-3-7B-Instruct"
  c.model.architecture = "architectures/olmo3_7b.json"
  # The 100,278 words of its vocabulary divide over 2 devices, and not over 4.
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, 4, 2
  c.mesh.chip = "h100"
  large(c)
  return c
