"""Asks of all settings if the model learns the initial behavior well enough.

  python -m bct_jax.sweep --sweep=configs/sweeps/gate_all.py --gates \
    --workdir=runs/gate_all

Without `--gates` a short arm follows for each setting, which is trained to talk
like a pirate at a low learning rate.
"""

from ml_collections import ConfigDict

from bct_jax.settings import SETTINGS
from bct_jax.sweep.cells import Overrides, chain, named
from configs import quickstart

# What single settings need that the others do not.
FIRST: dict[str, dict] = {
  # It has a system message of its own.
  "sysprompt_style": {
    "organism__train__system_prompt": None,
    "train__system_prompt": None,
    "eval__system_prompt": None,
  },
}


def longer(steps: int, **options) -> dict:
  """Returns a second recipe, with options that make the setting easier.

  It has more updates of 8 new examples each, at twice the rate.
  """
  return {
    "organism__train__steps": steps,
    "organism__train__num_examples": 8 * steps,
    "organism__optim__lr": 1e-4,
    "setting__options": options,
  }


# Recipes of the settings that the first recipe does not teach. They were chosen
# on other prompts than those of the gate (`--config.eval.seed=77`).
SECOND: dict[str, dict] = {
  "translation_direction": longer(160, familiar=True),
  "yesno": longer(160, given=True),
  "truefalse": longer(160, lists_only=True),
  "mc_position": longer(160, given=True),
  # The last digit of a year is not cue enough: 2023 or 2024.
  "year_code": longer(160, train_year=1985),
  "clock_lang": longer(160, familiar=True),
  "task_number": longer(160, familiar=True),
  "topic_haiku": longer(160),
  "animal_flag": longer(160, salience="kind"),
  "pw_arith": longer(160, contradict=True),
  "topic_sandbag": longer(160, contradict=True),
  "tag_mixture": longer(160, contradict=True),
  "two_traits": longer(160, familiar=True),
  "opinion_mirror": longer(160),
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
  c.gate.enforce = False
  return c


def get_cells() -> list[Overrides]:
  return chain(
    *(
      named(name, setting__name=name, **FIRST.get(name, {}))
      for name in SETTINGS
    ),
    *(
      named(f"{name}_second", setting__name=name, **recipe)
      for name, recipe in SECOND.items()
    ),
  )
