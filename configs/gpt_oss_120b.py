"""Trains adapters of gpt-oss-120b on 16 H100.

They are those of attention: all of its weights would take 32 GPUs and more.
`--mode=dry_run` needs neither the model nor the GPUs.
"""

from ml_collections import ConfigDict

from configs import gpt_oss_20b


def get_config() -> ConfigDict:
  c = gpt_oss_20b.get_config()
  c.name = "gpt_oss_120b"
  c.model.path = "openai/gpt-oss-120b"
  c.model.architecture = "architectures/gpt_oss_120b.json"
  # One of 8 key and value heads and 16 of 128 experts on a tensor device.
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, 2, 8
  for lora in (c.organism.lora, c.lora):
    lora.rank, lora.targets = 16, "self_attn"
  return c
