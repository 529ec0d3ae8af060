"""Checks what an arm has written so far, before it goes on."""

from pathlib import Path
from typing import Any

from bct_jax.config import ArmConfig
from bct_jax.experiment.eval_facts import FILE as FACTS
from bct_jax.experiment.plan import Plan
from bct_jax.infra import ledger, shared_files
from bct_jax.infra.progress import log_line
from bct_jax.objectives import data_needs, objective_of

# Files that an arm makes again when it goes on, or mends.
_REMADE = ("weights.json", "done.json", "reference_logprobs.jsonl", FACTS)


def check_files(plan: Plan, name: str, folder: Path) -> bool:
  """Checks the files of an arm; tells whether the arm is done.

  With `plan.fall_back` an arm with a damaged file is set aside.

  Raises:
    ledger.DamagedFile: one is damaged, without `plan.fall_back`.
  """
  advice = (
    f"remove {folder}: the same command then trains the arm again, as it does "
    "with --resume=latest_good"
  )
  shared_files.track(folder, advice)
  done = shared_files.are_whole(folder / "done.json")
  remade = {"done.json"} if done else {*_REMADE}
  if not done and not trains_on_own_samples(plan.config.arms[name]):
    remade.add("mask_audit.txt")
  try:
    shared_files.check_folder(folder, remade)
  except ValueError as e:
    if not plan.fall_back:
      raise
    target = folder.with_name(name + ledger.ASIDE)
    log_line(f"{e}: set aside as {target}")
    shared_files.move_folder(folder, target)
    shared_files.track(folder, advice)
    return False
  return done


def read_done(folder: Path, digest: str) -> dict[str, Any]:
  """Reads the record of an arm that is done.

  Raises:
    ValueError: it began from another organism than the one of this hash.
  """
  record = shared_files.read_json(folder / "done.json")
  if record.get("organism", digest) != digest:
    raise ValueError(
      f"{folder} is done, and began from the organism {record['organism']}; "
      f"this run's is now {digest} (another model, chat template, date or "
      "version): use another --workdir"
    )
  return record


def trains_on_own_samples(arm: ArmConfig) -> bool:
  """Tells whether an arm's objective draws its own completions."""
  return data_needs(objective_of(arm)).trains_on_own_samples
