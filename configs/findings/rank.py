"""Asks if a behavior that a low-rank adapter installed is easier to remove.

Organisms are made with adapters of several ranks, merged, and with all weights;
all weights of each are then trained in the same way. The higher the rank, the
more robust the behavior was found to be (LessWrong CmkAxJi83jRv9eXgJ).

A behavior that was installed more strongly may last longer, whatever its rank.
So each rank is installed for several numbers of updates, and organisms are
compared where the log probabilities of the two behaviors' completions are
equally far apart, within 2 nats. The lines of
`python -m configs.findings.rank runs/rank` are these pairs.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bct_jax.evals.summary import robustness_auc
from bct_jax.sweep.cells import Overrides, chain, cross_seeds, named, product
from configs.findings import common

# Peak learning rate of each install: chosen with another seed, so that every
# one of them passes the gate.
_RANKS = {"rank1": (1, 3e-3), "rank16": (16, 1e-3), "rank64": (64, 1e-3),
          "full": (0, 2e-4)}  # fmt: skip
_INSTALLS = (80, 160, 320)  # updates
_NATS = 2.0  # the most by which organisms of a pair may differ


def get_config() -> ConfigDict:
  c = common.small()
  c.name = "rank"
  c.optim.lr = 1e-3
  c.eval.references = True
  return c


def get_cells() -> list[Overrides]:
  ranks = chain(
    *(
      named(name, organism__lora__rank=rank, organism__optim__lr=lr)
      for name, (rank, lr) in _RANKS.items()
    )
  )
  installs = chain(
    *(
      named(
        f"install{n}",
        organism__train__steps=n,
        organism__train__num_examples=16 * n,
      )
      for n in _INSTALLS
    )
  )
  return product(cross_seeds(organism=5, arm=2), ranks, installs)


def read_pairs(root: Path) -> Iterator[dict[str, Any]]:
  """Yields each rank beside all weights, at installs of equal strength.

  Strength is log p of the initial completion minus that of the alternate one,
  in nats, averaged over eval prompts before training. Of the installs of one
  seed those are paired whose strengths are nearest.

  Args:
    root: the directory of the sweep.
  """
  arms = common.read_arms(root)
  seeds = dict.fromkeys(name.rsplit("-", 2)[0] for name in arms)
  for seed in seeds:
    for rank in [r for r in _RANKS if r != "full"]:
      pairs = [
        (abs(_strength(arms[low]) - _strength(arms[full])), low, full)
        for low in _names(arms, seed, rank)
        for full in _names(arms, seed, "full")
      ]
      if not pairs:
        continue
      nats, low, full = min(pairs)
      yield {
        "seed": seed,
        "rank": rank,
        "installs": [low.rsplit("-", 1)[1], full.rsplit("-", 1)[1]],
        "nats_apart": round(nats, 2),
        "matched": nats <= _NATS,
        **{
          key: [describe(arms[low]), describe(arms[full])]
          for key, describe in (
            ("strength", _strength),
            ("loss_by", lambda arm: arm["reading"]["loss_step"]["by"]),
            ("auc", _auc),
            ("integrity", lambda arm: arm["reading"]["integrity"]),
          )
        },
      }


def _names(arms, seed: str, rank: str) -> list[str]:
  """Names the arms of a seed and a rank."""
  return [name for name in arms if name.startswith(f"{seed}-{rank}-")]


def _strength(arm) -> float:
  start = arm["curve"][0]
  return round(start["logprob_initial"] - start["logprob_alternate"], 3)


def _auc(arm) -> float:
  """Returns the robustness AUC of an arm's evals."""
  start = arm["curve"][0]["capability"]
  points = [
    (p["capability"] / start, 1 - p["initial"]) for p in arm["curve"][1:]
  ]
  return round(robustness_auc(points), 3)


if __name__ == "__main__":
  for line in read_pairs(Path(sys.argv[1])):
    print(json.dumps(line))
