"""Loads low-rank adapters as `peft` writes them.

A folder has adapter_config.json and adapter_model.safetensors, with A [r, in]
and B [out, r] of each adapted layer. Both must say the same: `peft` would
ignore a tensor that the config does not ask for, and leave a layer without
tensors as it was.
"""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bct_jax.infra import files, processes, whole_folder
from bct_jax.infra.whole_folder import ModelSourceError
from bct_jax.models.config import ModelConfig
from bct_jax.models.huggingface import hub, peft_config, safetensors_file
from bct_jax.models.huggingface.files import INDEX, WEIGHTS
from bct_jax.models.huggingface.names import language_part
from bct_jax.models.huggingface.peft_config import CONFIG, MERGE
from bct_jax.models.huggingface.safetensors_file import StoredTensor
from bct_jax.models.lora import AdaptedLayers, LayeredLora, linear_layers
from bct_jax.types import PyTree

TENSORS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# A layer here, its block, and "A" or "B" -> the tensor of an adapter.
Tensors = dict[tuple[str, int, str], StoredTensor]


@dataclasses.dataclass(frozen=True)
class StoredAdapter:
  """Describes an adapter in a folder, before its tensors are read.

  Attributes:
    folder: of its files.
    lora: which layers it changes, and how.
    tensors: of the layers.
    base: the model that it was trained over, as its config names it; None if
      it names none.
    revision: of that model, if the config names one.
  """

  folder: Path
  lora: LayeredLora
  tensors: Tensors
  base: str | None
  revision: str | None

  @functools.cached_property
  def hash(self) -> str:
    """Returns a content hash of the adapter's two files."""
    return hash_files(self.folder)


def hash_files(folder: Path) -> str:
  """Returns a content hash of the two files of an adapter."""
  hashes = [whole_folder.sha256(folder / name) for name in (CONFIG, TENSORS)]
  return hashlib.sha256("".join(hashes).encode()).hexdigest()


def is_adapter(folder: Path) -> bool:
  """Tells whether a folder holds an adapter, and no whole model."""
  whole = any((folder / name).is_file() for name in (WEIGHTS, INDEX))
  return (folder / CONFIG).is_file() and not whole


def find_adapter(path: str | Path, fetch: bool = True) -> Path:
  """Turns the name of an adapter into a folder on this machine.

  Args:
    path: a folder, or a hub id, see hub.py.
    fetch: False takes from a hub only what was downloaded before.

  Raises:
    ModelSourceError: there is no such adapter; says what is missing.
  """
  text = os.fspath(path)
  folder = Path(text).expanduser()
  if not folder.is_dir():
    if folder.exists() or not hub.is_id(text):
      raise ModelSourceError(
        f"adapter {text!r}: neither a folder nor a hub id (org/name@revision)"
      )
    folder = hub.download(text, fetch)
  for name in (CONFIG, TENSORS):
    if not (folder / name).is_file():
      pickled = (folder / "adapter_model.bin").is_file()
      raise ModelSourceError(
        f"adapter {text!r}: {folder} has no {name}"
        + (
          "; adapter_model.bin is pickled, which can run any code when it is "
          "opened, and is not read: save it again with a newer peft"
          if pickled and name == TENSORS
          else ""
        )
      )
  return folder


def keep_adapter(adapter: StoredAdapter, folder: Path) -> None:
  """Copies the files of an adapter, unless they are there unharmed."""

  def copy() -> None:
    there = all((folder / name).is_file() for name in (TENSORS, CONFIG))
    if there and hash_files(folder) == adapter.hash:
      return
    for name in (TENSORS, CONFIG):
      files.write_bytes(folder / name, (adapter.folder / name).read_bytes())

  processes.run_on_first("copy of the adapter", copy)


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
  tensors, prefix = _match(folder / TENSORS, model, config)
  layers = []
  for name, module in modules.items():
    ranks, alphas = [], []
    for i in range(model.num_layers):
      full = f"{prefix}layers.{i}.{module}"
      adapted = peft_config.is_target(config, full)
      ranks.append(peft_config.rank_of(config, full) if adapted else 0)
      alphas.append(peft_config.alpha_of(config, full) if adapted else 0.0)
    if any(ranks):
      layers.append(AdaptedLayers(name, tuple(ranks), tuple(alphas)))
  if not layers:
    raise ValueError(
      f"{folder / CONFIG}: target_modules = {config.get('target_modules')!r} "
      f"names none of {sorted(modules.values())}"
    )
  targets = [re.escape(modules[x.name]) for x in layers]
  lora = LayeredLora(
    rank=max(max(x.ranks) for x in layers),
    alpha=float(config["lora_alpha"]),
    targets=f"^({'|'.join(sorted(targets))})$",
    rslora=bool(config.get("use_rslora")),
    layers=tuple(layers),
  )
  base = config.get("base_model_name_or_path") or None
  out = StoredAdapter(folder, lora, tensors, base, config.get("revision"))
  _check_tensors(out, abstract_params)
  return out


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
  modules = linear_layers(model)
  ours = {module: name for name, module in modules.items()}
  in_model, images = language_part(model, stored)
  out, prefix = {}, "model."
  form = re.compile(r"model\.(layers\.(\d+)\.(.+))\.lora_([AB])\.weight")
  for plain, name in in_model.items():
    found = form.fullmatch(plain)
    if not found or found[3] not in ours or int(found[2]) >= model.num_layers:
      raise ValueError(
        f"{path}: tensor {stored[name].name} is not of a linear layer of the "
        f"model's {model.num_layers} blocks ({', '.join(sorted(ours))}), and "
        f"no other is supported: {MERGE}"
      )
    prefix = name[: name.index("layers.")]
    if not peft_config.is_target(config, prefix + found[1]):
      raise ValueError(
        f"{path}: tensor {stored[name].name} is of a layer that "
        f"target_modules of {CONFIG} does not name"
      )
    out[ours[found[3]], int(found[2]), found[4]] = stored[name]
  if images and jax.process_index() == 0:
    whole_folder.say(
      f"{path}: only the language model is adapted, {images} tensors of the "
      "image encoder are left out"
    )
  return out, prefix


def _check_tensors(adapter: StoredAdapter, abstract_params: PyTree) -> None:
  """Requires that all tensors are there and fit the config and the model.

  Raises:
    ValueError: one does not; names the tensor and the adapter's base.
  """
  path = adapter.folder / TENSORS
  for name, ranks, _ in adapter.lora.layers:
    layer = abstract_params["layers"]
    for part in name.split("/"):
      layer = layer[part]
    _, fan_in, fan_out = layer["kernel"].shape
    for i, rank in enumerate(ranks):
      for kind, shape in (("A", (rank, fan_in)), ("B", (fan_out, rank))):
        if not rank:
          continue
        tensor = adapter.tensors.get((name, i, kind))
        if tensor is None:
          raise ValueError(
            f"{path}: no lora_{kind} of {name} in block {i}, which {CONFIG} "
            "says is adapted"
          )
        _ = tensor.dtype  # raises where it is not a float
        if tensor.shape != shape:
          raise ValueError(
            f"{path}: tensor {tensor.name} has shape {tensor.shape}, needed is "
            f"{shape}, by the rank in {CONFIG} and the model in use; the "
            f"adapter was made over {adapter.base}"
          )


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
      key = ("/".join(layer), i, name[-1].upper())
      if (tensor := adapter.tensors.get(key)) is not None:
        part = safetensors_file.read_rows(tensor, 0, tensor.shape[0]).T
        host[i, : part.shape[0], : part.shape[1]] = part
    return jax.make_array_from_callback(
      leaf.shape, leaf.sharding, lambda index: host[index]
    )

  return jax.tree_util.tree_map_with_path(load, abstract)


def describe_base(adapter: StoredAdapter, path: str, folder: Path) -> str:
  """Says how the model that an adapter is over differs from the one in use.

  Args:
    adapter: from `read_adapter`.
    path: of the model in use, as the config names it.
    folder: of the model in use.

  Returns:
    A line for the log; "" if both are the same, as far as names tell.
  """
  base, (name, _, revision) = adapter.base, path.partition("@")
  where = adapter.folder / CONFIG
  if base is None:
    return (
      f"{where}: base_model_name_or_path is missing; it is used over {path}"
    )
  same = base in (path, name)
  if not same and Path(base).expanduser().is_dir():
    same = Path(base).expanduser().resolve() == folder.resolve()
  if not same:
    return (
      f"{where}: base_model_name_or_path = {base!r}, and the model in use is "
      f"{path}: the shapes fit, but are the weights the same?"
    )
  used = {x for x in (revision, hub.commit(folder)) if x}
  if adapter.revision and used and adapter.revision not in used:
    return (
      f"{where}: revision = {adapter.revision!r}, and the model in use is "
      f"{base}@{'@'.join(sorted(used))}: are the weights the same?"
    )
  return ""
