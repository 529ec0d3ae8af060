"""A low-rank adapter as files that peft and vLLM load."""

from pathlib import Path

import numpy as np
import safetensors.numpy

from bct_jax.config import LoraConfig
from bct_jax.mesh import to_host
from bct_jax.models.config import ModelConfig
from bct_jax.models.folders import write_json
from bct_jax.models.lora import targets
from bct_jax.types import PyTree


def adapter_tensors(
  adapter: PyTree, model: ModelConfig, lora: LoraConfig
) -> dict[str, np.ndarray]:
  """peft's name -> tensor, transposed as there; small enough for one file."""
  host = to_host(adapter)
  out = {}
  for ours, module in targets(model, lora).items():
    node = host["layers"]
    for part in ours.split("/"):
      node = node[part]
    for i in range(model.num_layers):
      at = f"base_model.model.model.layers.{i}.{module}"
      for leaf, theirs in (("lora_a", "lora_A"), ("lora_b", "lora_B")):
        out[f"{at}.{theirs}.weight"] = np.ascontiguousarray(node[leaf][i].T)
  return out


def write_adapter(
  folder: Path, adapter: PyTree, model: ModelConfig, lora: LoraConfig, base: str
) -> None:
  """Writes adapter_config.json and adapter_model.safetensors.

  Args:
    folder: an existing folder.
    adapter: the tree that was trained.
    model: the architecture.
    lora: rank, alpha and targets.
    base: the model the adapter is over, a hub id or a folder.
  """
  tensors = adapter_tensors(adapter, model, lora)
  config = {
    "base_model_name_or_path": base,
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": lora.alpha,
    "lora_dropout": 0.0,
    "peft_type": "LORA",
    "r": lora.rank,
    "target_modules": sorted(set(targets(model, lora).values())),
    "task_type": "CAUSAL_LM",
    "use_rslora": lora.rslora,
  }
  write_json(folder / "adapter_config.json", config)
  safetensors.numpy.save_file(
    tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"}
  )
