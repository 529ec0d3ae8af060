"""Lets a run, or a cell of a sweep, grow: new arms and seeds, more prompts.

What is there stays bit for bit. The organism is not trained again, a finished
arm keeps its files if it asks the same prompts, and of more prompts those alone
are sampled that have no answer yet. The weights of an arm's evals are not kept:
with more prompts its updates are made again, and must give the very numbers
that they gave before.

  config.json         the config as it is now; `growth`: what was added, when
  arms_before/K/NAME  the arms of before the K-th time that prompts were added
"""

import dataclasses
import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bct_jax.config import ConfigError, ExperimentConfig, from_dict
from bct_jax.evals.evaluate import make_prompts
from bct_jax.experiment import eval_facts
from bct_jax.experiment.eval_rollouts import Kept, key_of
from bct_jax.experiment.organism import organism_folder, provenance
from bct_jax.experiment.plan import COUNTS, Plan, style_of
from bct_jax.infra import files, processes, shared_files
from bct_jax.infra.progress import log_line

BEFORE = "arms_before"


@dataclasses.dataclass(frozen=True)
class Growth:
  """Says what a config has more than the one that a run was begun with.

  Attributes:
    arms: names of the new ones.
    prompts: field of COUNTS -> how many prompts before and now, where that
      changes.
  """

  arms: tuple[str, ...]
  prompts: Mapping[str, tuple[int, int]]

  @property
  def sentence(self) -> str:
    """Returns what is added, in words."""
    parts = [f"arms {', '.join(self.arms)}"] if self.arms else []
    parts += [
      f"{COUNTS[field]} prompts {old} -> {new}"
      for field, (old, new) in self.prompts.items()
    ]
    return "; ".join(parts)


def find_growth(
  then: Mapping[str, Any], now: Mapping[str, Any]
) -> Growth | None:
  """Compares two configs, as nested mappings.

  Returns:
    What the new one adds; None if it changes anything else.
  """
  try:
    old, new = from_dict(then), from_dict(now)
  except ConfigError:
    return None
  if any(new.arms.get(name) != arm for name, arm in old.arms.items()):
    return None
  counts = {f: (getattr(old.eval, f), getattr(new.eval, f)) for f in COUNTS}
  if any(after < before for before, after in counts.values()):
    return None
  evals = {field: after for field, (_, after) in counts.items()}
  grown = dataclasses.replace(
    old,
    arms=new.arms,
    controls=new.controls,
    eval=dataclasses.replace(old.eval, **evals),
    compilation_cache=new.compilation_cache,
    log=new.log,
    keep=new.keep,
  )
  if grown != new:
    return None
  return Growth(
    tuple(name for name in new.arms if name not in old.arms),
    {field: pair for field, pair in counts.items() if pair[0] != pair[1]},
  )


def records(workdir: Path) -> list[dict[str, Any]]:
  """Reads what was added to a run, the oldest first."""
  config = shared_files.read_json_or_none(workdir / "config.json") or {}
  return config.get("growth", [])


def begin_growth(
  plan: Plan,
  workdir: Path,
  growth: Growth,
  config: Mapping[str, Any],
  overrides: Mapping[str, Any],
) -> None:
  """Makes the run one of the larger config.

  A kill leaves the run of before, or one that `prepare_growth` gets ready.

  Args:
    plan: of the larger config.
    workdir: of the run.
    growth: what it adds.
    config: the larger config as nested mappings.
    overrides: fields that flags of the command changed.

  Raises:
    ConfigError: what is there would change; nothing was touched.
  """
  then = shared_files.read_json(workdir / "config.json")
  old = from_dict(then["config"])
  _check(plan, workdir, old)
  log_line(f"{workdir} grows: {growth.sentence}; what is there stays")
  entry = {
    "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "arms": list(growth.arms),
    "prompts": {field: list(pair) for field, pair in growth.prompts.items()},
    "eval": {split: getattr(old.eval, f) for f, split in COUNTS.items()},
  }
  for name in ("done.json", "result.json"):
    shared_files.delete(workdir / name)
  shared_files.write_json(
    workdir / "config.json",
    {
      "config": config,
      "overrides": dict(overrides),
      "growth": [*then.get("growth", []), entry],
    },
  )


def _check(plan: Plan, workdir: Path, old: ExperimentConfig) -> None:
  """Checks that what is there would stay what it is.

  Raises:
    ConfigError: it would not; the message says what is different.
  """
  organism = organism_folder(workdir, provenance(plan))
  gates = _glob(workdir, "organisms/*/gate.json")
  if gates and organism / "gate.json" not in gates:
    there = ", ".join(path.parent.name for path in gates)
    raise ConfigError(
      f"{workdir}: the organism is now {organism.name}, and the run's is "
      f"{there} (another model, chat template, data or version): choose "
      "another --workdir"
    )
  for path in _glob(workdir, f"arms/*/{eval_facts.FILE}"):
    _check_scorers(plan, path)
  chat = plan.runtime.chat
  asked = make_prompts(
    plan.setting, plan.probe, chat, old.eval, style_of(plan.config)
  )
  now = {(p.split, p.example.id): p for p in plan.prompts}
  other = [p for p in asked if now.get((p.split, p.example.id)) != p]
  if other:
    raise ConfigError(
      f"{workdir}: with more prompts the {other[0].split} prompt "
      f"{other[0].example.id!r} is another one, so what was answered does not "
      "stay: choose another --workdir"
    )


def _glob(folder: Path, pattern: str) -> list[Path]:
  """Lists files, as the first process sees them."""
  names = processes.run_on_first(
    pattern,
    lambda: sorted(str(p.relative_to(folder)) for p in folder.glob(pattern)),
  )
  return [folder / name for name in names]


def _check_scorers(plan: Plan, path: Path) -> None:
  """Checks that the code still labels answers as it did for an arm.

  Raises:
    ConfigError: it does not.
  """
  then = (shared_files.read_json_or_none(path) or {}).get("scorers")
  if then not in (None, eval_facts.eval_facts(plan)["scorers"]):
    raise ConfigError(
      f"{path}: answers so far were labelled by other code than there is "
      "now, and one run must not mix them; go on with that of before "
      "(env.json has the revision), or choose another --workdir"
    )


def prepare_growth(plan: Plan, workdir: Path) -> Plan:
  """Moves arms aside that ask fewer prompts than the config, if they are there.

  Called whenever a run begins or goes on, before any arm does.

  Returns:
    The plan with the numbers of prompts that the run had before.
  """
  earlier = tuple(x["eval"] for x in records(workdir) if x["prompts"])
  count = len(earlier)
  arms, before = workdir / "arms", workdir / BEFORE / str(count)
  if count and shared_files.exists(arms) and not shared_files.exists(before):
    shared_files.move_folder(arms, before)
  return dataclasses.replace(plan, earlier=earlier)


class ArmBefore:
  """Holds what an arm had before prompts were added; maybe nothing.

  Attributes:
    steps: of its evals.
  """

  def __init__(self, plan: Plan, folder: Path):
    """Looks for what is left of an arm; a shared view of all processes.

    Args:
      plan: of the larger config.
      folder: of the arm now.
    """
    self._folder = folder
    numbers = range(len(plan.earlier), 0, -1)  # the latest first
    places = [
      folder.parents[1] / BEFORE / str(i) / folder.name for i in numbers
    ]
    self._folders = [p for p in places if shared_files.exists(p)]
    for place in self._folders:
      shared_files.track(place, "use another --workdir")
    self.steps = {
      line["step"]
      for place in self._folders
      for line in shared_files.read_lines(place / "evals.jsonl")
    }

  def check_scorers(self, plan: Plan) -> None:
    """Checks that answers are labelled as they were before.

    Raises:
      ConfigError: they are not.
    """
    for place in self._folders:
      _check_scorers(plan, place / eval_facts.FILE)

  def rows(self, step: int) -> Kept:
    """Returns the rollouts of an eval that stay, by `key_of`."""
    kept: dict[tuple[str, str, int], dict[str, Any]] = {}
    for place in reversed(self._folders):
      path = place / "rollouts" / f"step_{step}.jsonl"
      for row in shared_files.read_lines(path):
        kept[key_of(row)] = row
    return kept

  def check_updates(self, step: int) -> None:
    """Checks that the updates up to a step gave the numbers of before.

    Raises:
      ConfigError: one did not; the message has the first that differs.
    """
    for place in self._folders:
      before = files.read_lines(place / "metrics.jsonl")
      now = files.read_lines(self._folder / "metrics.jsonl")
      both = zip(before, now, strict=False)
      for old, new in (pair for pair in both if pair[0]["step"] <= step):
        for key in ("step", "loss", "grad_norm"):
          if old.get(key) != new.get(key):
            raise ConfigError(
              f"{self._folder}: update {new['step']}, made again for more "
              f"prompts, has {key} {new.get(key)!r}, and {place} has "
              f"{old.get(key)!r}: answers of both would be of two arms. Go on "
              "with the devices and versions that trained it (env.json), and "
              "a sweep with the same --together"
            )

  def drop_weights(self) -> None:
    """Deletes the checkpoints of before, once the arm has its own again."""
    for place in self._folders:
      files.delete_folder(place / "checkpoints")
