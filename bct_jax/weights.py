"""Weights of a run's folder: all params, or an adapter and what it is over."""

import dataclasses
import os
from pathlib import Path
from typing import Any

from bct_jax import metrics, processes
from bct_jax.checkpoint import Checkpoints
from bct_jax.config import ConfigError, LoraConfig
from bct_jax.models.lora import Weights
from bct_jax.runtime import Runtime
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
  processes.first(_FILE, lambda: metrics.write_json(folder / _FILE, facts))


def load_weights(runtime: Runtime, folder: Path | None) -> Weights:
  """Newest weights of a run's organism or arm, or the model's own (None).

  Raises:
    ConfigError: the folder is not one of those, or an adapter there is over
      another model.
    ValueError: a checkpoint is of other shapes or cannot be read.
  """
  if folder is None:
    return Weights(runtime.load())
  facts = _origin(folder)
  lora = LoraConfig(**facts["lora"]) if facts["lora"] else None
  if lora is not None and facts["model_hash"] != runtime.model_hash:
    raise ConfigError(
      f"{folder}: its adapter is over another model than "
      f"{runtime.config.model.path}; give the --config it was trained with"
    )
  checkpoints = Checkpoints(folder / "checkpoints")
  try:
    if lora is None:
      return Weights(checkpoints.restore_params(runtime.abstract_params))
    adapter = checkpoints.restore_params(runtime.abstract_trained(lora))
  finally:
    checkpoints.close()
  base = base_params(runtime, adapter_base(folder))
  return Weights(base, adapter, lora)


def adapter_base(folder: Path) -> Path | None:
  """The folder whose params an adapter is over; None is the model's own."""
  base = _origin(folder)["base"]
  return None if base is None else folder / base


def _origin(folder: Path) -> dict[str, Any]:
  return processes.first(_FILE, lambda: _read_origin(folder))


def _read_origin(folder: Path) -> dict[str, Any]:
  if not (folder / _FILE).is_file() or not (folder / "checkpoints").is_dir():
    raise ConfigError(
      f"--params={folder}: no {_FILE} and checkpoints there; it must be "
      "organisms/HASH or arms/NAME of a run"
    )
  return metrics.read_json(folder / _FILE)


def base_params(runtime: Runtime, folder: Path | None) -> PyTree:
  """Params of a folder as an adapter's base: its own adapter is folded in."""
  return runtime.fold(load_weights(runtime, folder)).params
