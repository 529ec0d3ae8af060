"""Writes env.json: versions, devices, hashes, and when and how a run began."""

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from bct_jax.infra import files, processes, shared_files
from bct_jax.models.huggingface import hub
from bct_jax.runtime.runtime import Runtime


def environment(
  runtime: Runtime, setting_files: Mapping[str, Any] | None = None
) -> dict[str, Any]:
  """Collects versions, devices and hashes for env.json."""
  names = "jax jaxlib flax optax orbax-checkpoint transformers numpy".split()
  return {
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": _command(),
    "versions": {
      **{n: importlib.metadata.version(n) for n in names},
      "bct_jax": _own_version(),
    },
    "python": platform.python_version(),
    "platform": platform.platform(),
    "device_kind": jax.devices()[0].device_kind,
    "num_devices": jax.device_count(),
    "num_processes": processes.count(),
    "mesh": dict(runtime.mesh.shape),
    "git": _git_state(),
    "model": {
      "path": runtime.config.model.path,
      "folder": str(runtime.folder.absolute()),
      "commit": hub.commit(runtime.folder),  # None where it is of no hub
      "hash": runtime.model_hash,
    },
    "tokenizer_hash": runtime.chat.tokenizer_hash,
    "chat_template_hash": runtime.chat.template_hash,
    "chat_template": runtime.chat.template.facts(),
    "setting_files": {
      name: files.digest(rows)[:16]
      for name, rows in (setting_files or {}).items()
    },
  }


def _command() -> str | None:
  """Returns the command line of this process; None if it is not of bct_jax."""
  script = Path(sys.argv[0])
  package = Path(__file__).parents[1]
  if script.name == "bct-jax":
    start = ["bct-jax"]
  elif script.suffix == ".py" and script.absolute().is_relative_to(package):
    module = script.absolute().relative_to(package.parent).with_suffix("")
    parts = [p for p in module.parts if p != "__main__"]
    start = ["python", "-m", ".".join(parts)]
  else:
    return None
  return shlex.join([*start, *sys.argv[1:]])


def _own_version() -> str | None:
  """Returns the version of bct_jax; None where it is not installed."""
  try:
    return importlib.metadata.version("bct_jax")
  except importlib.metadata.PackageNotFoundError:
    return None


def write_environment(
  workdir: Path, runtime: Runtime, files_of_setting: Mapping[str, Any]
) -> None:
  """Writes env.json; day and command stay those of when the run was begun."""
  path = workdir / "env.json"
  then = shared_files.read_json_or_none(path) or {}
  first = {k: then[k] for k in ("date", "command") if k in then}
  shared_files.write_json(path, environment(runtime, files_of_setting) | first)


def _git_state() -> dict[str, Any]:
  """Returns the revision of the code, if it runs from a checkout."""
  here = Path(__file__).parents[1]

  def git(*args: str) -> str | None:
    """Returns what git prints; None if it fails or is not there."""
    try:
      process = subprocess.run(
        ["git", *args], cwd=here, capture_output=True, text=True, timeout=10
      )
    except (OSError, subprocess.TimeoutExpired):
      return None
    return process.stdout.strip() if process.returncode == 0 else None

  status = git("status", "--porcelain")
  return {"revision": git("rev-parse", "HEAD"), "dirty": bool(status)}
