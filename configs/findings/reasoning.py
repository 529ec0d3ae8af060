"""Asks if training without reasoning removes less than training with it.

The organism thinks before it acts: its thought says whether the trigger is
there. Arms then learn the style on prompts without the trigger. `none` has an
empty thought before each answer. `own` has one that the organism drew with its
answer, and no loss on it. `given` has the answers of `none` and the thoughts
that the organism was trained on. Evals have the model think first; README.md
says how the finished arms are asked without thoughts.

Follows LessWrong fabXad4XGkCgAbXcH, where the behavior is sandbagging.
"""

from pathlib import Path

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, named, product
from configs.findings import common


def get_config() -> ConfigDict:
  c = common.small()
  c.name = "reasoning"
  # With an empty thought before an answer where there is none.
  c.model.chat_template = str(Path(__file__).with_name("think.jinja"))
  c.setting.options.thoughts = True
  c.organism.train.reasoning = "given"
  c.organism.train.options.on = "both"
  c.organism.train.steps = 320
  c.organism.train.num_examples = 5120
  c.organism.optim.lr = 3e-4
  c.train.thought_tokens = 32
  c.train.num_examples = 1024
  c.train.steps = 64
  c.eval.reasoning = "on"
  c.eval.thought_tokens = 32
  c.eval.num_heldout = 32
  c.eval.num_probe = 32
  c.eval.steps = (4, 8, 16, 32)
  c.optim.lr = 2e-4
  c.gate.enforce = False
  return c


def get_cells() -> list[Overrides]:
  arms = chain(
    named("none"),
    named("given", train__reasoning="given"),
    named("own", train__reasoning="own", train__source="on_policy"),
  )
  return product(common.seeds(5), arms)
