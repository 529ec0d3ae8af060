"""The run directory: one run at a time, one config, and what it ran on."""

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from bct_jax import metrics
from bct_jax.config import ConfigError
from bct_jax.models import hub
from bct_jax.runtime import Runtime


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
  """Makes the run directory and keeps other runs out.

  The system lets go of the lock when the process dies, however that happens.

  Raises:
    ConfigError: it cannot be made, or another process holds it.
  """
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise ConfigError(f"--workdir={workdir}: cannot be made: {e}") from None
  with open(workdir / ".lock", "a+") as f:
    try:
      fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      f.seek(0)
      raise ConfigError(
        f"{workdir} is in use by process {f.read().strip() or 'unknown'}"
      ) from None
    f.truncate(0)
    f.write(str(os.getpid()))
    f.flush()
    yield


def keep_config(
  workdir: Path, raw: Mapping[str, Any], overrides: Mapping[str, Any]
) -> None:
  """Writes config.json, or checks that the run was begun with the same.

  Raises:
    ConfigError: it was begun with another config; the message lists fields.
  """
  path = workdir / "config.json"
  # Through JSON, so that tuples and lists compare alike.
  now = json.loads(json.dumps(raw))
  if path.exists():
    then = metrics.read_json(path)["config"]
    changed = [
      f"{k}: {a!r} -> {b!r}"
      for k, a, b in _differences(_flat(then), _flat(now))
    ]
    if changed:
      raise ConfigError(
        f"{workdir} was begun with another config ({'; '.join(changed[:8])}): "
        "choose another --workdir"
      )
    return
  metrics.write_json(path, {"config": now, "overrides": dict(overrides)})


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  out = {}
  for k, v in values.items():
    if isinstance(v, Mapping) and v:
      out.update(_flat(v, f"{prefix}{k}."))
    else:
      out[prefix + k] = v
  return out


def _differences(a: dict, b: dict) -> list[tuple[str, Any, Any]]:
  return [
    (k, a.get(k, "absent"), b.get(k, "absent"))
    for k in sorted(set(a) | set(b))
    if a.get(k, "absent") != b.get(k, "absent")
  ]


def environment(runtime: Runtime) -> dict[str, Any]:
  """Versions, devices and hashes, for env.json."""
  names = "jax jaxlib flax optax orbax-checkpoint transformers numpy".split()
  return {
    "versions": {n: importlib.metadata.version(n) for n in names},
    "python": platform.python_version(),
    "platform": platform.platform(),
    "device_kind": jax.devices()[0].device_kind,
    "num_devices": jax.device_count(),
    "mesh": dict(runtime.mesh.shape),
    "git": _git(),
    "model": {
      "path": runtime.config.model.path,
      "folder": str(runtime.folder.absolute()),
      "commit": hub.commit(runtime.folder),  # None where it is of no hub
      "hash": runtime.model_hash,
    },
    "tokenizer_hash": runtime.chat.tokenizer_hash,
    "chat_template_hash": runtime.chat.template_hash,
  }


def _git() -> dict[str, Any]:
  """Revision of the code, if it runs from a checkout."""
  here = Path(__file__).parent

  def git(*args: str) -> str | None:
    try:
      done = subprocess.run(
        ["git", *args], cwd=here, capture_output=True, text=True, timeout=10
      )
    except (OSError, subprocess.TimeoutExpired):
      return None
    return done.stdout.strip() if done.returncode == 0 else None

  status = git("status", "--porcelain")
  return {"revision": git("rev-parse", "HEAD"), "dirty": bool(status)}
