"""All settings: does the model learn each initial behavior well enough?

  python -m bct_jax.sweep --sweep=configs/sweeps/gate_all.py --gates \
    --workdir=runs/gate_all

Without `--gates` a short arm follows for each setting, which is trained to talk
like a pirate at a low learning rate.
"""

from ml_collections import ConfigDict

from bct_jax.cells import Overrides, chain, named
from bct_jax.settings import SETTINGS
from configs import quickstart

# What the installs of single settings have apart from those of the others.
RECIPES: dict[str, dict] = {
  # It has a system message of its own.
  "sysprompt_style": {
    "organism__train__system_prompt": None,
    "train__system_prompt": None,
    "eval__system_prompt": None,
  },
}


def get_config() -> ConfigDict:
  c = quickstart.get_config()
  c.name = "gate_all"
  c.arms = ConfigDict()
  c.max_length = 256
  c.organism.train.steps = 64
  c.train.steps = 24
  c.optim.lr = 1e-5
  c.eval.steps = ()
  c.eval.num_eval = 64
  c.eval.num_heldout = 64
  c.sampling.max_new_tokens = 64
  c.gate.base_rates = True
  c.gate.enforce = False
  return c


def get_cells() -> list[Overrides]:
  return chain(
    *(
      named(name, setting__name=name, **RECIPES.get(name, {}))
      for name in SETTINGS
    )
  )
