"""Loads the weights of a run's folder: params, or an adapter and its base."""

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import ConfigError, LoraConfig
from bct_jax.infra import processes, shared_files
from bct_jax.infra.progress import log_line
from bct_jax.models.lora import Weights
from bct_jax.runtime.runtime import Runtime
from bct_jax.train.checkpoint import Checkpoints, DamagedCheckpoint
from bct_jax.types import PyTree

_FILE = "weights.json"


def record_origin(
  folder: Path, runtime: Runtime, lora: LoraConfig, base: Path | None
) -> None:
  """Writes what the checkpoints in a folder hold, for `load_weights`.

  Args:
    folder: organisms/HASH or arms/NAME of a run.
    runtime: for the model's hash.
    lora: of the adapter that is trained there; rank 0 means all params.
    base: the folder whose params the adapter is over; None means the model's.
  """
  origin = {
    "lora": dataclasses.asdict(lora) if lora.rank else None,
    "base": os.path.relpath(base, folder) if base and lora.rank else None,
    "model_hash": runtime.model_hash,
  }
  shared_files.write_json(folder / _FILE, origin)


def load_weights(runtime: Runtime, folder: Path | None) -> Weights:
  """Loads the newest weights of a run's organism or arm.

  With `optim.ema_decay` the weights of a finished run are the average; those of
  a run that still trains are the ones after its last saved update.

  Args:
    runtime: for the model.
    folder: organisms/HASH or arms/NAME of a run; None is the model itself.

  Raises:
    ConfigError: the folder is neither, or an adapter there is over another
      model.
    ValueError: a checkpoint has other shapes or cannot be read.
  """
  if folder is None:
    return Weights(runtime.load())
  trained, lora = _restore(runtime, folder)
  if lora is None:
    return Weights(trained)
  return Weights(base_params(runtime, adapter_base(folder)), trained, lora)


def _restore(
  runtime: Runtime, folder: Path
) -> tuple[PyTree, LoraConfig | None]:
  """Restores what was trained in a folder, and of an adapter its config."""
  origin = _origin(folder)
  lora = LoraConfig(**origin["lora"]) if origin["lora"] else None
  if lora is not None and origin["model_hash"] != runtime.model_hash:
    raise ConfigError(
      f"{folder}: its adapter is over another model than "
      f"{runtime.config.model.path}; give the --config it was trained with"
    )
  shapes = runtime.abstract_trained(lora)
  # Written when an arm is done, and when an organism has its weights.
  is_arm = shared_files.exists(folder / "done.json")
  if not is_arm and not shared_files.exists(folder / "made.json"):
    return _restore_unfinished(folder, shapes), lora
  checkpoints = Checkpoints(folder / "checkpoints")
  try:
    return checkpoints.restore_params(shapes), lora
  except DamagedCheckpoint as e:
    if not is_arm:
      raise
    raise ConfigError(
      f"{e}, after the removal of done.json from it and from the run, which "
      "say that there is nothing left to train"
    ) from None
  finally:
    checkpoints.close()


def _restore_unfinished(folder: Path, shapes: PyTree) -> PyTree:
  """Restores the newest complete checkpoint of what may be training now.

  While it is read, training may replace it by the next one: then that is read.

  Raises:
    ValueError: there is none yet, or it cannot be read again and again.
  """
  # Several processes could not all try once more.
  attempts = 4 if processes.count() == 1 else 1
  for attempt in range(attempts):
    checkpoints = Checkpoints(folder / "checkpoints", watching=True)
    try:
      params = checkpoints.restore_params(shapes)
      log_line(
        f"{folder} is not done: its weights after update {checkpoints.latest()}"
      )
      return params
    except ValueError:
      if attempt == attempts - 1:
        raise
      time.sleep(0.5)
    finally:
      checkpoints.close()
  raise AssertionError("unreachable")


def group_by_base(folders: Sequence[Path | None]) -> list[list[Path | None]]:
  """Groups folders that `load_arms` loads together.

  Adapters over the same params are one group. The folder of these params, if it
  is among the folders, belongs to their group.
  """
  groups: dict[Path | None, list[Path | None]] = {}
  for folder in folders:
    base = _base(folder)
    groups.setdefault(base and base.resolve(), []).append(folder)
  return list(groups.values())


def _base(folder: Path | None) -> Path | None:
  """Returns the folder that an adapter is over, else the folder itself."""
  if folder is None or _origin(folder)["lora"] is None:
    return folder
  return adapter_base(folder)


def load_arms(
  runtime: Runtime, folders: Sequence[Path | None]
) -> list[Weights]:
  """Loads the weights of a group of `group_by_base`; all share one base."""
  params = base_params(runtime, _base(folders[0]))
  out = []
  for folder in folders:
    if folder is None or _origin(folder)["lora"] is None:
      out.append(Weights(params))
    else:
      out.append(Weights(params, *_restore(runtime, folder)))
  return out


def adapter_base(folder: Path) -> Path | None:
  """Returns the folder whose params an adapter is over; None is the model."""
  base = _origin(folder)["base"]
  return None if base is None else folder / base


def _origin(folder: Path) -> dict[str, Any]:
  """Reads what `record_origin` wrote; raises ConfigError without it."""
  origin = shared_files.read_json_or_none(folder / _FILE)
  has_weights = shared_files.exists(folder / "checkpoints")
  if origin is not None and not has_weights:
    raise ConfigError(
      f"--params={folder}: its weights were removed (keep = 'results' or "
      "--mode=clean)"
    )
  if origin is None or not has_weights:
    raise ConfigError(
      f"--params={folder}: no {_FILE} and checkpoints there; it must be "
      "organisms/HASH or arms/NAME of a run"
    )
  return origin


def base_params(runtime: Runtime, folder: Path | None) -> PyTree:
  """Loads params of a folder to put adapters over; merges its own adapter."""
  return runtime.merge_adapter(load_weights(runtime, folder)).params
