"""Weights of a run's folder: all params, or an adapter and what it is over."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import ConfigError, LoraConfig
from bct_jax.infra import shared_files
from bct_jax.models.lora import Weights
from bct_jax.runtime.runtime import Runtime
from bct_jax.train.checkpoint import Checkpoints
from bct_jax.types import PyTree

_FILE = "weights.json"


def record_origin(
  folder: Path, runtime: Runtime, lora: LoraConfig, base: Path | None
) -> None:
  """Notes what the checkpoints in a folder hold; read by `load_weights`.

  Args:
    folder: organisms/HASH or arms/NAME of a run.
    runtime: for the model's hash.
    lora: of the adapter that is trained there; rank 0 means all params.
    base: the folder whose params the adapter is over; None is the model's own.
  """
  facts = {
    "lora": dataclasses.asdict(lora) if lora.rank else None,
    "base": os.path.relpath(base, folder) if base and lora.rank else None,
    "model_hash": runtime.model_hash,
  }
  shared_files.write_json(folder / _FILE, facts)


def load_weights(runtime: Runtime, folder: Path | None) -> Weights:
  """Newest weights of a run's organism or arm, or the model's own (None).

  With `optim.ema_decay` those of a finished one are the average; while it
  trains, those of the last update.

  Raises:
    ConfigError: the folder is not one of those, or an adapter there is over
      another model.
    ValueError: a checkpoint is of other shapes or cannot be read.
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
  """What was trained there: all params, or an adapter and what it is."""
  facts = _origin(folder)
  lora = LoraConfig(**facts["lora"]) if facts["lora"] else None
  if lora is not None and facts["model_hash"] != runtime.model_hash:
    raise ConfigError(
      f"{folder}: its adapter is over another model than "
      f"{runtime.config.model.path}; give the --config it was trained with"
    )
  checkpoints = Checkpoints(folder / "checkpoints")
  try:
    shapes = runtime.abstract_trained(lora)
    return checkpoints.restore_params(shapes), lora
  finally:
    checkpoints.close()


def group_by_base(folders: Sequence[Path | None]) -> list[list[Path | None]]:
  """Groups of folders that `load_arms` loads together.

  Adapters over the same params are one group, with those params if they are
  among the folders.
  """
  groups: dict[Path | None, list[Path | None]] = {}
  for folder in folders:
    base = _base(folder)
    groups.setdefault(base and base.resolve(), []).append(folder)
  return list(groups.values())


def _base(folder: Path | None) -> Path | None:
  """The folder whose params an adapter is over; of other weights their own."""
  if folder is None or _origin(folder)["lora"] is None:
    return folder
  return adapter_base(folder)


def load_arms(
  runtime: Runtime, folders: Sequence[Path | None]
) -> list[Weights]:
  """Weights of a group of `by_base`, over the same params loaded once."""
  params = base_params(runtime, _base(folders[0]))
  out = []
  for folder in folders:
    if folder is None or _origin(folder)["lora"] is None:
      out.append(Weights(params))
    else:
      out.append(Weights(params, *_restore(runtime, folder)))
  return out


def adapter_base(folder: Path) -> Path | None:
  """The folder whose params an adapter is over; None is the model's own."""
  base = _origin(folder)["base"]
  return None if base is None else folder / base


def _origin(folder: Path) -> dict[str, Any]:
  origin = shared_files.read_json_or_none(folder / _FILE)
  if origin is None or not shared_files.exists(folder / "checkpoints"):
    raise ConfigError(
      f"--params={folder}: no {_FILE} and checkpoints there; it must be "
      "organisms/HASH or arms/NAME of a run"
    )
  return origin


def base_params(runtime: Runtime, folder: Path | None) -> PyTree:
  """Params of a folder as an adapter's base: its own adapter is folded in."""
  return runtime.merge_adapter(load_weights(runtime, folder)).params
