"""Learns from a reward: SmolLM2 comes to answer multiple choice.

SmolLM2-135M-Instruct itself is the organism. On prompts where both behaviors of
the setting pick the same choice it draws eight answers each. Those that show
the agreed behavior are rewarded (RLOO). Minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from configs import default
from configs.quickstart import SYSTEM


def get_config() -> ConfigDict:
  c = default.get_config()
  c.name = "policy_gradient"
  c.setting.name = "mc_position"
  c.max_length = 128
  c.organism.kind = "native"

  c.train.objective = "policy_gradient"
  c.train.source = "on_policy"
  c.train.options = {"reward": "agreed", "group_size": 8}
  c.train.steps = 20
  c.train.batch_size = 32  # four prompts
  c.train.num_examples = 256
  c.train.system_prompt = SYSTEM
  c.train.checkpoint_every = 10
  c.optim.lr = 2e-5
  c.optim.warmup_steps = 2
  c.arms.rloo = {}

  c.eval.num_eval = 16
  c.eval.num_heldout = 16
  c.eval.num_probe = 16
  c.eval.steps = (10,)
  c.eval.system_prompt = SYSTEM
  c.sampling.batch_size = 32
  c.sampling.max_new_tokens = 16
  # The model has neither behavior before it is trained.
  c.gate.enforce = False
  return c
