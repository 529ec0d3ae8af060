"""Exports a low-rank adapter as files that peft and vLLM load."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bct_jax.config import LoraConfig
from bct_jax.infra import processes, whole_folder
from bct_jax.mesh import to_host
from bct_jax.models.config import ModelConfig
from bct_jax.models.huggingface import safetensors_file
from bct_jax.models.huggingface.export import MADE_BY, check_target
from bct_jax.models.lora import LayeredLora, Weights, target_layers
from bct_jax.types import PyTree


def adapter_tensors(
  adapter: PyTree, model: ModelConfig, lora: LoraConfig
) -> dict[str, np.ndarray]:
  """Makes the tensors of an adapter under peft's names, transposed as there.

  They are small enough for one file.
  """
  host = to_host(adapter)
  out = {}
  for ours, module in target_layers(model, lora).items():
    node = host["layers"]
    for part in ours.split("/"):
      node = node[part]
    for i, (rank, _) in enumerate(_of_blocks(lora, ours, model)):
      at = f"base_model.model.model.layers.{i}.{module}"
      low = {"lora_A": node["lora_a"][i].T[:rank]}
      low["lora_B"] = node["lora_b"][i].T[:, :rank]
      for theirs, x in low.items() if rank else ():
        out[f"{at}.{theirs}.weight"] = np.ascontiguousarray(x)
  return out


def _of_blocks(
  lora: LoraConfig, name: str, model: ModelConfig
) -> list[tuple[int, float]]:
  """Returns rank and alpha of a linear layer in each block; rank 0 is none."""
  if isinstance(lora, LayeredLora):
    _, ranks, alphas = next(x for x in lora.layers if x.name == name)
    return list(zip(ranks, alphas, strict=True))
  return [(lora.rank, lora.alpha)] * model.num_layers


def _selection(model: ModelConfig, lora: LoraConfig) -> dict[str, Any]:
  """Returns the fields that say which modules are adapted, and how."""
  targets = target_layers(model, lora)
  blocks = {
    f"model.layers.{i}.{module}": both
    for name, module in targets.items()
    for i, both in enumerate(_of_blocks(lora, name, model))
  }
  adapted = {name: both for name, both in blocks.items() if both[0]}
  whole = len(adapted) == len(blocks)
  return {
    "alpha_pattern": {
      name: alpha for name, (_, alpha) in adapted.items() if alpha != lora.alpha
    },
    "rank_pattern": {
      name: rank for name, (rank, _) in adapted.items() if rank != lora.rank
    },
    "target_modules": sorted({*targets.values()} if whole else adapted),
  }


def export_adapter(
  out: Path,
  weights: Weights,
  model: ModelConfig,
  base: str,
  about: Mapping[str, Any] | None = None,
) -> Path:
  """Writes adapter_config.json and adapter_model.safetensors.

  All processes must call it, and the first writes. As with export_hf, the
  folder appears whole, and replaces nothing but a folder of an export.

  Args:
    out: the folder to write.
    weights: params with an adapter.
    model: the architecture.
    base: the model that the adapter is over, a hub id or a folder.
    about: JSON values to keep in the folder's manifest.

  Raises:
    ModelSourceError: something else is at `out`, or it cannot be written.
  """
  lora = weights.lora
  assert lora is not None
  tensors = adapter_tensors(weights.adapter, model, lora)
  config = {
    "base_model_name_or_path": base,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": lora.alpha,
    "lora_dropout": 0.0,
    "peft_type": "LORA",
    "r": lora.rank,
    "task_type": "CAUSAL_LM",
    "use_rslora": lora.rslora,
    **_selection(model, lora),
  }

  def build(folder: Path) -> None:
    whole_folder.write_json(folder / "adapter_config.json", config)
    safetensors_file.write_whole(folder / "adapter_model.safetensors", tensors)

  key = {"made_by": MADE_BY, **(about or {})}

  def write() -> str:
    check_target(out)
    return str(whole_folder.write_folder(out, key, build))

  return Path(processes.run_on_first("export", write))
