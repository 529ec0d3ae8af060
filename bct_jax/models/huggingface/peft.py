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
from bct_jax.models.lora import Weights, target_layers
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
    for i in range(model.num_layers):
      at = f"base_model.model.model.layers.{i}.{module}"
      for leaf, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
        out[f"{at}.{theirs}.weight"] = np.ascontiguousarray(node[leaf][i].T)
  return out


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
    "target_modules": sorted(set(target_layers(model, lora).values())),
    "task_type": "CAUSAL_LM",
    "use_rslora": lora.rslora,
  }

  def build(folder: Path) -> None:
    whole_folder.write_json(folder / "adapter_config.json", config)
    safetensors_file.write_whole(folder / "adapter_model.safetensors", tensors)

  key = {"made_by": MADE_BY, **(about or {})}

  def write() -> str:
    check_target(out)
    return str(whole_folder.write_folder(out, key, build))

  return Path(processes.run_on_first("export", write))
