"""Repeats prompts.py on SmolLM2, which must be taught to heed such a prompt.

The setting `sysprompt_style` has both kinds of prompt; its organisms are
trained to take up the style that their prompt asks for.
"""

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, named, product
from configs.findings import common


def get_config() -> ConfigDict:
  c = common.smollm2()
  c.name = "prompts_smollm2"
  c.setting.name = "sysprompt_style"
  for run in (c.organism.train, c.train, c.eval):
    run.system_prompt = None  # the setting's own
  c.optim.lr = 5e-5
  c.train.steps = 32
  return c


def get_cells() -> list[Overrides]:
  modes = chain(
    named("static", setting__options={"mode": "static"}),
    named("dynamic", setting__options={"mode": "dynamic"}),
  )
  return product(common.seeds(2), modes)
