"""Loads low-rank adapters as `peft` writes them.

A folder has adapter_config.json and adapter_model.safetensors, with A [r, in]
and B [out, r] of each adapted layer. Both must say the same: `peft` would
ignore a tensor that the config does not ask for, and leave a layer without
tensors as it was.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bct_jax.infra import whole_folder
from bct_jax.models.architecture import ModelConfig
from bct_jax.models.huggingface import peft_config, safetensors_file
from bct_jax.models.huggingface.adapter_folder import (
  TENSORS,
  StoredAdapter,
  Tensors,
)
from bct_jax.models.huggingface.expert_adapters import (
  MODULE,
  PARAMETERS,
  fused_layers,
  is_parameter,
  module_of,
  split_module,
  take_apart,
)
from bct_jax.models.huggingface.names import language_part
from bct_jax.models.huggingface.peft_config import CONFIG, MERGE
from bct_jax.models.lora import (
  AdaptedLayers,
  LayeredLora,
  expert_layers,
  find_layer,
  kernel_of,
  linear_layers,
)
from bct_jax.types import PyTree

_PREFIX = "base_model.model."


def read_adapter(
  folder: Path, model: ModelConfig, abstract_params: PyTree
) -> StoredAdapter:
  """Reads what an adapter changes; of its tensors the headers alone.

  Args:
    folder: of `find_adapter`.
    model: the architecture that it is put over.
    abstract_params: shapes of the params of that model.

  Raises:
    ValueError: a field is not supported, or config, tensors and model do not
      fit each other; names file and field or tensor.
  """
  config = peft_config.read_config(folder)
  modules = linear_layers(model)
  _check_parameters(folder, config, model)
  tensors, prefix = _match(folder / TENSORS, model, config)
  layers = []
  for name, module in modules.items():
    of_blocks = [
      _find_rank(folder, model, config, name, f"{prefix}layers.{i}.{module}")
      for i in model.layers_of(name)
    ]
    ranks, alphas = zip(*of_blocks, strict=True)
    if any(ranks):
      layers.append(AdaptedLayers(name, ranks, alphas))
  if not layers:
    raise ValueError(
      f"{folder / CONFIG}: target_modules = {config.get('target_modules')!r} "
      f"names none of {sorted(modules.values())}"
    )
  targets = [
    re.escape(modules[x.name]).replace(re.escape("{}"), r"\d+") for x in layers
  ]
  lora = LayeredLora(
    rank=max(max(x.ranks) for x in layers),
    alpha=float(config["lora_alpha"]),
    targets=f"^({'|'.join(sorted(targets))})$",
    rslora=bool(config.get("use_rslora")),
    layers=tuple(layers),
  )
  base = config.get("base_model_name_or_path") or None
  out = StoredAdapter(folder, lora, tensors, base, config.get("revision"))
  _check_tensors(out, model, abstract_params)
  return out


def _check_parameters(
  folder: Path, config: Mapping[str, Any], model: ModelConfig
) -> None:
  """Requires that all parameters that a config adapts are of experts.

  Raises:
    ValueError: one is not; names it.
  """
  known = [
    f"model.layers.{i}.{MODULE}.{parameter}"
    for i in range(model.num_layers if model.num_experts else 0)
    for parameter in PARAMETERS
  ]
  for target in config.get("target_parameters") or ():
    if not any(is_parameter({"target_parameters": [target]}, x) for x in known):
      what = ", ".join(f"{MODULE}.{x}" for x in PARAMETERS)
      raise ValueError(
        f"{folder / CONFIG}: target_parameters = {target!r} names no matrix of "
        f"experts that this model has"
        + (f" ({what})" if known else "; it has no experts")
        + f": {MERGE}"
      )


def _find_rank(
  folder: Path,
  model: ModelConfig,
  config: Mapping[str, Any],
  name: str,
  full: str,
) -> tuple[int, float]:
  """Returns rank and alpha of a layer in a block; rank 0 is no adapter.

  Args:
    folder, model, config: of the adapter.
    name: of the layer here.
    full: the whole name of its module, with {} for an expert.

  Raises:
    ValueError: experts of a block are not adapted alike.
  """
  parameters = [full]
  if name in expert_layers(model):
    of_module = full[: full.index(".experts") + len(".experts")]
    for parameter in PARAMETERS:
      whole = f"{of_module}.{parameter}"
      if name in fused_layers(model, parameter) and is_parameter(config, whole):
        return (
          peft_config.rank_of(config, whole),
          peft_config.alpha_of(config, whole),
        )
    if "{}" not in full:
      return 0, 0.0
    parameters = [full.format(e) for e in range(model.num_experts)]
  found = {
    (peft_config.rank_of(config, x), peft_config.alpha_of(config, x))
    if peft_config.is_target(config, x)
    else (0, 0.0)
    for x in parameters
  }
  if len(found) > 1:
    raise ValueError(
      f"{folder / CONFIG}: the experts of {full} have adapters of different "
      f"ranks and alphas ({sorted(found)}): {MERGE}"
    )
  return found.pop()


def _match(
  path: Path, model: ModelConfig, config: Mapping[str, Any]
) -> tuple[Tensors, str]:
  """Finds the layer of every tensor of an adapter.

  Returns:
    The tensors; and what stands before "layers.0" in the whole names of
    modules.

  Raises:
    ValueError: a tensor is of no linear layer of the model's blocks, or of one
      that the config leaves out.
  """
  stored = {
    name.removeprefix(_PREFIX): tensor
    for name, tensor in safetensors_file.read_header(path).items()
  }
  ours = {
    (module, i): name
    for name, module in linear_layers(model).items()
    for i in model.layers_of(name)
  }
  in_model, left_out = language_part(model, stored)
  out, prefix = {}, "model."
  form = re.compile(r"model\.(layers\.(\d+)\.(.+))\.lora_([AB])\.weight")
  for plain, name in in_model.items():
    found = form.fullmatch(plain)
    layer, expert = split_module(found[3]) if found else ("", None)
    if found and model.num_experts and layer.startswith(MODULE):
      if parameter := _find_parameter(config, name, layer):
        prefix = name[: name.index("layers.")]
        key = parameter, int(found[2]), found[4], None
        out[key] = stored[name]
        continue
    own = ours.get((layer, int(found[2]))) if found else None
    if not found or not own or (expert or 0) >= max(1, model.num_experts):
      known = sorted({module for module, _ in ours})
      raise ValueError(
        f"{path}: tensor {stored[name].name} is not of a linear layer of the "
        f"model's {model.num_layers} blocks ({', '.join(known)}), and "
        f"no other is supported: {MERGE}"
      )
    prefix = name[: name.index("layers.")]
    if not peft_config.is_target(config, prefix + found[1]):
      raise ValueError(
        f"{path}: tensor {stored[name].name} is of a layer that "
        f"target_modules of {CONFIG} does not name"
      )
    entry = model.layers_of(own).index(int(found[2]))
    out[own, entry, found[4], expert] = stored[name]
  for what, count in left_out.items() if jax.process_index() == 0 else ():
    whole_folder.say(
      f"{path}: only the language model is adapted, {count} tensors of {what} "
      "are left out"
    )
  return out, prefix


def _find_parameter(
  config: Mapping[str, Any], name: str, module: str
) -> str | None:
  """Finds the fused matrix that a tensor adapts; None if it is of none.

  Args:
    config: of the adapter.
    name: of the tensor, without the prefix of all.
    module: within its block, "mlp.experts" or "mlp.experts.base_layer".
  """
  block = name[: name.index(MODULE)]
  adapted = [
    x for x in PARAMETERS if is_parameter(config, f"{block}{MODULE}.{x}")
  ]
  return next((x for x in adapted if module_of(x, adapted) == module), None)


def _check_tensors(
  adapter: StoredAdapter, model: ModelConfig, abstract_params: PyTree
) -> None:
  """Requires that all tensors are there and fit the config and the model.

  Raises:
    ValueError: one does not; names the tensor and the adapter's base.
  """
  path = adapter.folder / TENSORS
  for name, ranks, _ in adapter.lora.layers:
    for i, rank in enumerate(ranks):
      for key, shape in _shapes(adapter, model, abstract_params, name, i, rank):
        tensor = adapter.tensors.get(key)
        if tensor is None:
          _, _, kind, expert = key
          of = "" if expert is None else f" (expert {expert})"
          raise ValueError(
            f"{path}: no lora_{kind} of {name}{of} in block "
            f"{model.layers_of(name)[i]}, which {CONFIG} says is adapted"
          )
        _ = tensor.dtype  # raises where it is not a float
        if tensor.shape != shape:
          raise ValueError(
            f"{path}: tensor {tensor.name} has shape {tensor.shape}, needed is "
            f"{shape}, by the rank in {CONFIG} and the model in use; the "
            f"adapter was made over {adapter.base}"
          )


def _shapes(
  adapter: StoredAdapter,
  model: ModelConfig,
  abstract_params: PyTree,
  name: str,
  block: int,
  rank: int,
) -> Iterator[tuple[tuple[str, int, str, int | None], tuple[int, int]]]:
  """Yields the keys in Tensors of a layer's adapter, and their shapes."""
  if not rank:
    return

  def shape_of(layer: str) -> tuple[int, ...]:
    return kernel_of(find_layer(abstract_params, layer)).shape

  _, *experts, fan_in, fan_out = shape_of(name)
  parameter = _fused_parameter(adapter.tensors, name, block)
  if parameter is not None:
    # gate and up of Qwen3 are one matrix there.
    count, layers = experts[0], fused_layers(model, parameter)
    fan_out = sum(shape_of(layer)[-1] for layer in layers)
    yield (parameter, block, "A", None), (count * rank, fan_in)
    yield (parameter, block, "B", None), (fan_out, rank * count)
    return
  for expert in range(experts[0]) if experts else (None,):
    yield (name, block, "A", expert), (rank, fan_in)
    yield (name, block, "B", expert), (fan_out, rank)


def _fused_parameter(tensors: Tensors, name: str, block: int) -> str | None:
  """Returns the fused matrix that has a layer's adapter; None if none has."""
  parameter = "down_proj" if name == "mlp/down" else "gate_up_proj"
  there = (parameter, block, "A", None) in tensors
  return parameter if name.startswith("mlp/") and there else None


def load_adapter(adapter: StoredAdapter, abstract: PyTree) -> PyTree:
  """Reads the tensors of an adapter onto their devices, as float32.

  Args:
    adapter: from `read_adapter`.
    abstract: of lora.abstract_adapter, with shardings.

  Raises:
    ValueError: a file cannot be read.
  """

  def load(path: Sequence[Any], leaf: jax.ShapeDtypeStruct) -> jax.Array:
    _, *layer, name = (key.key for key in path)
    host = np.zeros(leaf.shape, np.float32)
    for i in range(leaf.shape[0]):
      part = _read_block(
        adapter, "/".join(layer), i, name[-1].upper(), leaf.shape[1:]
      )
      if part is not None:
        host[i, ..., : part.shape[-2], : part.shape[-1]] = part
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda index: host[index]
    )

  return jax.tree_util.tree_map_with_path(load, abstract)


def _read_block(
  adapter: StoredAdapter,
  name: str,
  block: int,
  kind: str,
  shape: Sequence[int],
) -> np.ndarray | None:
  """Reads A [in, r] or B [r, out] of a layer, of experts with an axis in front.

  Args:
    adapter, name, block, kind: of the layer's adapter.
    shape: of the array here, whose rank may be higher.
  """

  def read(key: tuple[str, int, str, int | None]) -> np.ndarray | None:
    tensor = adapter.tensors.get(key)
    if tensor is None:
      return None
    return safetensors_file.read_rows(tensor, 0, tensor.shape[0])

  parameter = _fused_parameter(adapter.tensors, name, block)
  if parameter is not None:
    fused = read((parameter, block, kind, None))
    assert fused is not None  # `_check_tensors` saw it
    whole = take_apart(kind, fused, shape[0])
    if kind == "B" and name in ("mlp/gate", "mlp/up"):
      # Both have the same A, and of B the first half is the gate's.
      half = whole.shape[-1] // 2
      return whole[..., :half] if name == "mlp/gate" else whole[..., half:]
    return whole
  if len(shape) == 2:
    found = read((name, block, kind, None))
    return None if found is None else found.T
  experts = [read((name, block, kind, e)) for e in range(shape[0])]
  if experts[0] is None:
    return None
  return np.stack([x.T for x in experts if x is not None])
