"""Exports a low-rank adapter as files that peft and vLLM load."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bct_jax.config import LoraConfig
from bct_jax.infra import processes, whole_folder
from bct_jax.mesh import to_host
from bct_jax.models.architecture import ModelConfig
from bct_jax.models.huggingface import expert_adapters, safetensors_file
from bct_jax.models.huggingface.export import MADE_BY, check_target
from bct_jax.models.lora import (
  LayeredLora,
  Weights,
  expert_layers,
  find_layer,
  rank_of,
  target_layers,
)
from bct_jax.types import PyTree


def adapter_tensors(
  adapter: PyTree, model: ModelConfig, lora: LoraConfig
) -> dict[str, np.ndarray]:
  """Makes the tensors of an adapter under peft's names, transposed as there.

  They are small enough for one file. Experts are as expert_adapters.py says:
  fused where a checkpoint of the model has them so or where they have a shared
  expert beside them, else apart.
  """
  host = to_host(adapter)
  out = {}
  targets = target_layers(model, lora)
  for i, name, low in _fuse_gated(host, model, lora, targets):
    for theirs, x in zip(("lora_A", "lora_B"), low, strict=True):
      at = f"base_model.model.model.layers.{i}.{name}"
      out[f"{at}.{theirs}.weight"] = np.ascontiguousarray(x)
  for ours, module in targets.items():
    if model.shared_width and ours in expert_layers(model):
      continue
    node = find_layer(host, ours)
    numbers = model.layers_of(ours)
    for i, (rank, _) in enumerate(_of_blocks(lora, ours, model)):
      if not rank:
        continue
      a, b = node["lora_a"][i][..., :rank], node["lora_b"][i][..., :rank, :]
      for name, low in _arrange(ours, module, a, b, _fused(model, targets)):
        at = f"base_model.model.model.layers.{numbers[i]}.{name}"
        for theirs, x in zip(("lora_A", "lora_B"), low, strict=True):
          out[f"{at}.{theirs}.weight"] = np.ascontiguousarray(x)
  return out


def _fuse_gated(
  host: PyTree, model: ModelConfig, lora: LoraConfig, targets: Mapping[str, str]
) -> Iterator[tuple[int, str, tuple[np.ndarray, np.ndarray]]]:
  """Yields block, module, A and B of gated experts with a shared one.

  gate and up are one matrix there and have two adapters here. Those are one of
  twice the rank, in which each has its own part of A and its own rows of B.
  """
  if not model.shared_width:
    return
  fused = _fused(model, targets)
  for parameter in fused:
    layers = expert_adapters.fused_layers(model, parameter)
    for i in range(model.num_layers):
      lows = []
      for place, name in enumerate(layers):
        rank = _of_blocks(lora, name, model)[i][0] if name in targets else 0
        if not rank:
          continue
        node = find_layer(host, name)
        b = node["lora_b"][i][..., :rank, :]
        rows = [np.zeros_like(b)] * len(layers)
        rows[place] = b
        lows.append((node["lora_a"][i][..., :rank], np.concatenate(rows, -1)))
      if lows:
        a, b = (
          np.concatenate(x, axis)
          for x, axis in zip(zip(*lows, strict=True), (-1, -2), strict=True)
        )
        module = expert_adapters.module_of(parameter, fused)
        yield i, module, expert_adapters.fuse(a, b)


def _arrange(
  ours: str, module: str, a: np.ndarray, b: np.ndarray, fused: Sequence[str]
) -> Iterator[tuple[str, tuple[np.ndarray, np.ndarray]]]:
  """Yields modules of a block with A and B as `peft` has them.

  Args:
    ours: the linear layer here.
    module: its name there.
    a, b: [in, r] and [r, out], of experts with an axis in front.
    fused: parameters that are adapted in their fused form.
  """
  if a.ndim == 2:
    yield module, (a.T, b.T)
  elif "{}" in module:
    for e in range(len(a)):
      yield module.format(e), (a[e].T, b[e].T)
  else:
    parameter = f"{ours.removeprefix('mlp/')}_proj"
    yield (
      expert_adapters.module_of(parameter, fused),
      expert_adapters.fuse(a, b),
    )


def _fused(model: ModelConfig, targets: Mapping[str, str]) -> list[str]:
  """Lists the parameters of experts that are adapted in their fused form."""
  if not model.shared_width:
    return [
      f"{name.removeprefix('mlp/')}_proj"
      for name in expert_layers(model)
      if name in targets and "{}" not in targets[name]
    ]
  # Apart they would have the names of the shared expert's layers.
  return [
    parameter
    for parameter in expert_adapters.PARAMETERS
    if any(x in targets for x in expert_adapters.fused_layers(model, parameter))
  ]


def _of_blocks(
  lora: LoraConfig, name: str, model: ModelConfig
) -> list[tuple[int, float]]:
  """Returns rank and alpha of a linear layer in each block that has it.

  Rank 0 is no adapter.
  """
  if isinstance(lora, LayeredLora):
    _, ranks, alphas = next(x for x in lora.layers if x.name == name)
    return list(zip(ranks, alphas, strict=True))
  both = rank_of(model, lora, name), lora.alpha
  return [both] * len(model.layers_of(name))


def _of_experts(
  lora: LoraConfig, experts: Sequence[str], model: ModelConfig
) -> tuple[int, float]:
  """Returns rank and alpha of the experts, or the config's where none has any.

  Raises:
    ValueError: blocks or matrices differ in them.
  """
  found = {b for name in experts for b in _of_blocks(lora, name, model)}
  if len(found) > 1:
    raise ValueError(
      f"adapters of experts differ between blocks or matrices ({found} "
      "as rank and alpha): export merged weights"
    )
  return found.pop() if found else (lora.rank, lora.alpha)


def _selection(model: ModelConfig, lora: LoraConfig) -> dict[str, Any]:
  """Returns the fields that say which modules are adapted, and how.

  Rank and alpha of experts are the config's own. `peft` doubles those where it
  fuses gate and up, and reads no pattern for them then.

  Raises:
    ValueError: blocks differ in which experts they adapt, or how; or `peft`
      would take the names for others.
  """
  targets = target_layers(model, lora)
  if model.family == "qwen3_next" and any(
    name.startswith("shared/") for name in targets
  ):
    raise ValueError(
      "peft takes layers of Qwen3-Next's shared expert for those of its other "
      "experts: export merged weights, or set lora.targets without "
      "mlp.shared_expert"
    )
  experts = [name for name in expert_layers(model) if name in targets]
  r, own_alpha = _of_experts(lora, experts, model)
  blocks = {
    f"model.layers.{i}.{module}": both
    for name, module in targets.items()
    if name not in experts
    for i, both in zip(
      model.layers_of(name), _of_blocks(lora, name, model), strict=True
    )
  }
  adapted = {name: both for name, both in blocks.items() if both[0]}
  plain = {module for name, module in targets.items() if name not in experts}
  apart = {
    targets[name].rpartition(".")[2]
    for name in experts
    if "{}" in targets[name] and not model.shared_width
  }
  fused = [f"{expert_adapters.MODULE}.{x}" for x in _fused(model, targets)]
  patterns = dict(adapted)
  if model.shared_width and {"mlp/gate", "mlp/up"} <= set(targets):
    # Of twice the rank, see `_fuse_gated`, and of the same scale.
    alpha = own_alpha * (2**0.5 if lora.rslora else 2)
    patterns[fused[0]] = 2 * r, alpha
  return {
    "r": r,
    "lora_alpha": own_alpha,
    "alpha_pattern": {
      name: alpha for name, (_, alpha) in patterns.items() if alpha != own_alpha
    },
    "rank_pattern": {
      name: rank for name, (rank, _) in patterns.items() if rank != r
    },
    "target_modules": sorted(
      {*(plain if adapted == blocks else adapted), *apart}
    ),
    **({"target_parameters": fused} if fused else {}),
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
    "lora_dropout": 0.0,
    "peft_type": "LORA",
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
