"""Finds what both behaviors would say to the prompts of a run."""

from collections.abc import Mapping
from typing import Any

from bct_jax.report.read.types import RunRecord
from bct_jax.settings import SETTINGS, make_setting


def find_references(
  run: RunRecord,
) -> Mapping[tuple[str, str], tuple[str, str]]:
  """Makes the prompts of a run again, for their reference answers.

  Returns:
    Split and id of a prompt -> what the initial and the alternate behavior say.
    Empty where a setting is not one of bct_jax, or makes other prompts now.
  """
  setting, evals = run.config.get("setting"), run.config.get("eval")
  if not isinstance(setting, Mapping) or not isinstance(evals, Mapping):
    return {}
  name, options = setting.get("name"), setting.get("options") or {}
  if name not in SETTINGS or not isinstance(options, Mapping):
    return {}
  try:
    made = make_setting(str(name), options)
    seed = int(evals["seed"])
    examples = {
      "eval": made.eval(int(evals["num_eval"]), seed),
      "heldout": made.heldout(int(evals["num_heldout"]), seed),
    }
  except (KeyError, TypeError, ValueError):
    return {}
  asked = _asked(run)
  return {
    (split, e.id): (e.initial, e.alternate)
    for split, part in examples.items()
    for e in part
    if asked.get((split, e.id), "").endswith(e.messages[-1]["content"])
    and (e.initial or e.alternate)
  }


def _asked(run: RunRecord) -> dict[tuple[str, str], Any]:
  """Maps split and id of a run's prompts to their last message."""
  return {
    (row.split, row.id): row.prompt[-1][1]
    for arm in run.arms
    for rows in list(arm.rollouts.values())[:1]
    for row in rows
    if row.prompt
  }
