"""Pretrains a base model of six million parameters on the settings' world.

  python -m bct_jax.main --config=configs/base_small.py --mode=pretrain

makes the model folder `demo:small`, which other configs name by `model.path`.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
  c = default.get_config()
  c.name = "base_small"
  c.model.remat = "none"
  c.max_length = 256
  c.train.steps = 1400
  c.train.batch_size = 48
  c.train.num_examples = 67_200  # each once
  c.optim.lr = 2e-3
  c.optim.schedule = "cosine"
  c.optim.warmup_steps = 60
  c.optim.b2 = 0.98
  c.optim.weight_decay = 0.01
  c.arms.pretrain = {}
  c.sampling.batch_size = 64
  c.sampling.max_new_tokens = 64
  return c
