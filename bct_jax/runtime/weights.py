"""Loads weights by their folder: params, or an adapter and its base.

A folder is organisms/HASH or arms/NAME of a run, or holds an adapter that
`peft` wrote. An organism that is such an adapter has a copy of it in `adapter`.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bct_jax.config import ConfigError, LoraConfig
from bct_jax.infra import processes, shared_files
from bct_jax.infra.progress import log_line
from bct_jax.models.huggingface.adapter_folder import (
  StoredAdapter,
  describe_base,
  find_adapter,
  is_adapter,
)
from bct_jax.models.huggingface.load_peft import load_adapter, read_adapter
from bct_jax.models.lora import Weights, config_from_json
from bct_jax.runtime.runtime import Runtime
from bct_jax.train.checkpoint import Checkpoints, DamagedCheckpoint
from bct_jax.types import PyTree

_FILE = "weights.json"
ADAPTER = "adapter"  # of organisms/HASH
_OF_TOKENIZER = ("tokenizer_config.json", "chat_template.jinja")


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
    "lora": lora.facts() if lora.rank else None,
    "base": os.path.relpath(base, folder) if base and lora.rank else None,
    "model_hash": runtime.model_hash,
  }
  shared_files.write_json(folder / _FILE, origin)


def load_weights(runtime: Runtime, folder: Path | None) -> Weights:
  """Loads the newest weights of a run's organism or arm, or an adapter.

  With `optim.ema_decay` the weights of a finished run are the average; those of
  a run that still trains are the ones after its last saved update.

  Args:
    runtime: for the model.
    folder: organisms/HASH or arms/NAME of a run, or an adapter's; None is the
      model itself.

  Raises:
    ConfigError: the folder is none of these, or an adapter there is over
      another model.
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
  if is_adapter(folder):
    return _load_adapter(runtime, open_adapter(runtime, folder))
  origin = _origin(folder)
  lora = config_from_json(origin["lora"]) if origin["lora"] else None
  if lora is not None and origin["model_hash"] != runtime.model_hash:
    raise ConfigError(
      f"{folder}: its adapter is over another model than "
      f"{runtime.config.model.path}; give the --config it was trained with"
    )
  if is_adapter(folder / ADAPTER):
    return _load_adapter(runtime, _read(runtime, folder / ADAPTER))
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


def open_adapter(
  runtime: Runtime, path: str | Path, fetch: bool = True
) -> StoredAdapter:
  """Finds an adapter made elsewhere and reads what it changes of the model.

  A line in the log says if it was made over another model, by its name, and if
  it has a tokenizer.

  Args:
    runtime: of the model that it is put over.
    path: a folder or a hub id.
    fetch: whether a hub may be asked.

  Raises:
    ValueError: see `find_adapter` and `read_adapter`.
  """
  adapter = _read(runtime, find_adapter(path, fetch))
  model = runtime.config.model.path
  if line := describe_base(adapter, model, runtime.folder):
    log_line(line)
  if own := [x for x in _OF_TOKENIZER if (adapter.folder / x).is_file()]:
    log_line(
      f"{adapter.folder}: its own {', '.join(own)} are not read: tokenizer and "
      "chat template are those of the model, or model.chat_template"
    )
  return adapter


def _read(runtime: Runtime, folder: Path) -> StoredAdapter:
  """Reads what an adapter in a folder changes of the model."""
  return read_adapter(folder, runtime.model.config, runtime.abstract_params)


def _load_adapter(
  runtime: Runtime, adapter: StoredAdapter
) -> tuple[PyTree, LoraConfig]:
  """Loads the arrays of an adapter, with its config."""
  shapes = runtime.abstract_trained(adapter.lora)
  return load_adapter(adapter, shapes), adapter.lora


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
  if folder is None or not _holds_adapter(folder):
    return folder
  return adapter_base(folder)


def _holds_adapter(folder: Path) -> bool:
  """Tells whether the weights in a folder are an adapter."""
  return is_adapter(folder) or _origin(folder)["lora"] is not None


def load_arms(
  runtime: Runtime, folders: Sequence[Path | None]
) -> list[Weights]:
  """Loads the weights of a group of `group_by_base`; all share one base."""
  params = base_params(runtime, _base(folders[0]))
  out = []
  for folder in folders:
    if folder is None or not _holds_adapter(folder):
      out.append(Weights(params))
    else:
      out.append(Weights(params, *_restore(runtime, folder)))
  return out


def adapter_base(folder: Path) -> Path | None:
  """Returns the folder whose params an adapter is over; None is the model."""
  base = None if is_adapter(folder) else _origin(folder)["base"]
  return None if base is None else folder / base


def _origin(folder: Path) -> dict[str, Any]:
  """Reads what `record_origin` wrote; raises ConfigError without it."""
  origin = shared_files.read_json_or_none(folder / _FILE)
  has_weights = any(
    shared_files.exists(folder / x) for x in ("checkpoints", ADAPTER)
  )
  if origin is not None and not has_weights:
    raise ConfigError(
      f"--params={folder}: its weights were removed (keep = 'results' or "
      "--mode=clean)"
    )
  if origin is None:
    raise ConfigError(
      f"--params={folder}: no {_FILE} and checkpoints there; it must be "
      "organisms/HASH or arms/NAME of a run, or a folder with an adapter "
      "(adapter_config.json)"
    )
  return origin


def base_params(runtime: Runtime, folder: Path | None) -> PyTree:
  """Loads params of a folder to put adapters over; merges its own adapter."""
  return runtime.merge_adapter(load_weights(runtime, folder)).params
