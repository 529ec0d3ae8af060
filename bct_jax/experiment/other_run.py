"""Takes the organism of another run: `organism.from_run`."""

import os
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bct_jax.config import ConfigError
from bct_jax.infra import files, ledger, processes, remote_runs, shared_files
from bct_jax.infra.object_store import is_url
from bct_jax.infra.progress import log_line

RECORD = "from_run.json"
_NEEDED = ("provenance.json", "made.json", "gate.json", "rollouts.jsonl")


def take_organism(
  run: str | Path, folder: Path, facts: Mapping[str, Any]
) -> None:
  """Makes the organism's folder from that of another run, unless it is there.

  Checkpoints are linked, where both are on one disk, and else copied; the
  other run may be deleted after. Gate and rollouts come along. If this run asks
  other prompts they are sampled here.

  Args:
    run: the directory of a run or sweep with that organism, or its URL.
    folder: of the organism here, named by its hash.
    facts: its provenance; the other run's must be equal.

  Raises:
    ConfigError: the other run does not have that organism, or not finished; the
      message has the fields that differ.
  """
  if shared_files.exists(folder / "gate.json"):
    return

  def take() -> None:
    source = remote_runs.local_copy(run) / "organisms" / folder.name
    _check(source, facts)
    remote_runs.fetch_folder(source)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
      shutil.copytree(source, partial, copy_function=_link_or_copy)
      record = {"run": _name(run), "hash": folder.name}
      files.write_json(partial / RECORD, record)
      shutil.rmtree(folder, ignore_errors=True)
      partial.rename(folder)
      remote_runs.send_folder(folder, last="gate.json")
    finally:
      shutil.rmtree(partial, ignore_errors=True)
    log_line(f"organism {folder.name} is taken from {run}, with its gate")

  processes.run_on_first("organism of another run", take)


def _name(run: str | Path) -> str:
  """Returns the absolute path of a run, or its URL."""
  return str(run) if is_url(run) else str(Path(run).expanduser().absolute())


def _link_or_copy(source: str, target: str) -> str:
  """Links a file of a checkpoint, which nothing changes; copies any other."""
  if "checkpoints" in Path(source).parts:
    try:
      os.link(source, target)
      return target
    except OSError:  # another disk
      pass
  return shutil.copy2(source, target)


def _check(source: Path, facts: Mapping[str, Any]) -> None:
  """Checks that a folder has the organism of these facts, whole."""
  where = f"organism.from_run = {str(source.parents[1])!r}"
  if not source.parent.is_dir():
    raise ConfigError(f"{where}: no run with an organism is there")
  if not source.is_dir():
    raise ConfigError(f"{where}: {_describe_others(source, facts)}")
  missing = [name for name in _NEEDED if not (source / name).exists()]
  if missing:
    raise ConfigError(
      f"{where}: {source.name} has no {missing[0]}; finish that run first"
    )
  there = files.read_json(source / "provenance.json")
  if files.digest(there)[:16] != source.name:
    raise ConfigError(
      f"{where}: provenance.json is not what the name {source.name} is the "
      "hash of; was it changed?"
    )
  for name, damage in ledger.Ledger(source).find_damage().items():
    raise ConfigError(
      f"{where}: {source.name}/{name} {damage}; restore it, or let the "
      "command of that run make the organism again"
    )


def _describe_others(source: Path, facts: Mapping[str, Any]) -> str:
  """Says in what the organisms of a run differ from the one that is needed."""
  ours, lines = _flat(facts), []
  for path in sorted(source.parent.glob("*/provenance.json")):
    theirs = _flat(files.read_json(path))
    differences = [
      f"{key} {theirs.get(key)!r} there, {ours.get(key)!r} here"
      for key in sorted({*ours, *theirs})
      if ours.get(key) != theirs.get(key)
    ]
    lines.append(f"{path.parent.name} has {', '.join(differences)}")
  return (
    f"its organism is not the one of this config, {source.name}: "
    f"{'; '.join(lines) or 'it has none'}. Make setting, model and organism "
    "fields equal, or leave from_run out to train this one"
  )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
  """Flattens nested mappings; their names are joined by dots."""
  if not isinstance(value, Mapping):
    return {prefix[:-1]: list(value) if isinstance(value, tuple) else value}
  return {
    name: item
    for key, part in value.items()
    for name, item in _flat(part, f"{prefix}{key}.").items()
  }
