"""Trains Llama-3.1-8B-Instruct, all of its weights, on a TPU v5e-16.

`--mode=dry_run` needs neither the model nor the TPU.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  c = default.get_config()
  c.name = "llama3_1_8b"
  c.model.path = "meta-llama/Llama-3.1-8B-Instruct"
  c.model.architecture = "architectures/llama3_1_8b.json"
  # 16 chips. The sampler's copy of the weights is spread over tensor only: 16
  # GB over 4 fit beside the state, over 1 they do not.
  c.mesh.data, c.mesh.fsdp, c.mesh.tensor = 1, 4, 4
  c.mesh.chip = "v5e"
  large(c)
  return c


def large(c: ConfigDict) -> None:
  """Sets what large models share: precision, rows, two arms."""
  c.model.dtype = "bfloat16"
  c.model.remat = "full"
  c.max_length = 1024
  for train in (c.organism.train, c.train):
    train.batch_size = 32
    train.num_examples = 2560
  c.organism.optim.lr = 1e-5
  c.train.decoration = "pirate"
  c.optim.warmup_steps = 2
  c.arms.low = {"optim": {"lr": 3e-6}}
  c.arms.high = {"optim": {"lr": 3e-5}}
  c.sampling.batch_size = 128
