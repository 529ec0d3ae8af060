"""Asks which organisms survive training: a league table of them.

  python -m bct_jax.sweep --sweep=configs/sweeps/survive.py \\
    --workdir=runs/survive

Each organism is trained in all styles, at all learning rates, with all seeds.
At the end, and by `python -m bct_jax.report runs/survive --league=markdown`, a
table has a row for each. Those of one's own are in a JSON file, by name, with
the fields in which each differs from the config below:

  --sweep=configs/sweeps/survive.py:mine.json

  {"organisms": {
     "public": {"organism.kind": "adapter", "model.path": "org/base@revision",
                "organism.adapter": "org/adapter@revision"},
     "whole": {"organism.kind": "native", "model.path": "org/model@revision"},
     "taught": {"setting.name": "yesno", "organism.train.steps": 64}},
   "styles": ["pirate"], "learning_rates": [1e-5, 1e-4], "seeds": [0, 1, 2]}
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bct_jax.config import ConfigError, choose
from bct_jax.sweep.cells import Overrides, chain, named, product, values
from configs import quickstart

# What a file may leave out but its organisms: ways to install the quickstart's
# behavior.
LISTS: dict[str, Any] = {
  "organisms": {
    "full": {},
    "rank8": {"organism.lora.rank": 8, "organism.optim.lr": 1e-3},
    "distilled": {"organism.kind": "distill"},
    "prompted": {"organism.kind": "static_prompt"},
  },
  "styles": ("pirate", "cheerful"),
  "learning_rates": (1e-5, 3e-5, 1e-4),
  "seeds": (0, 1, 2),
}


def get_config(file: str = "") -> ConfigDict:
  del file
  c = quickstart.get_config()
  c.name = "survive"
  c.arms = ConfigDict()
  c.train.steps = 64
  c.eval.num_probe = 64
  # The table shows which gates failed; such organisms say little.
  c.gate.enforce = False
  return c


def get_cells(file: str = "") -> list[Overrides]:
  return make_cells(**{**LISTS, **(_read(file) if file else {})})


def make_cells(
  organisms: Mapping[str, Mapping[str, Any]],
  styles: Sequence[str],
  learning_rates: Sequence[float],
  seeds: Sequence[int],
) -> list[Overrides]:
  """Crosses organisms, by name with their fields, with styles and the rest."""
  return product(
    chain(
      *(
        named(label, **{"name": label, **fields})
        for label, fields in organisms.items()
      )
    ),
    values("train.decoration", *styles),
    values("optim.lr", *learning_rates),
    values("train.seed", *seeds),
  )


def _read(file: str) -> dict[str, Any]:
  """Reads the lists of a file.

  Raises:
    ConfigError: it has no organisms by name, or another field than LISTS.
  """
  lists = json.loads(Path(file).expanduser().read_text("utf-8"))
  organisms = lists.get("organisms") if isinstance(lists, dict) else None
  if not isinstance(organisms, dict) or not all(
    isinstance(fields, dict) for fields in organisms.values()
  ):
    raise ConfigError(
      f'{file}: "organisms" is needed, an object of organisms by name, each '
      "an object of fields"
    )
  for name in lists:
    choose(name, LISTS, file)
  return lists
