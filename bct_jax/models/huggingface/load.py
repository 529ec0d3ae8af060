"""Loads Hugging Face safetensors as sharded params, without torch.

One layer of one parameter is read at a time, in blocks of rows. Only the part
that the devices of this process hold is read, and once, however many of them
hold it. It is then written into its place on the devices. So the host holds the
device shards of one tensor, never a parameter of all layers or a file.
"""

# A parameter [L, in, out] of which a process holds half of `in`, by time:
#
#   zeros   on the devices [L, in, out]
#   layer 0   file -> block of rows -> buffer [out, in / 2] -> devices, turned,
#                     (16 MB)          (one layer, host)       into [0]
#   layer 1                            the buffer's memory is free again

import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax.infra import whole_folder
from bct_jax.infra.files import read_object
from bct_jax.infra.progress import stage
from bct_jax.mesh import path_name
from bct_jax.models.architecture import ModelConfig
from bct_jax.models.huggingface import mxfp4, safetensors_file
from bct_jax.models.huggingface.files import INDEX, WEIGHTS, no_weights
from bct_jax.models.huggingface.mxfp4 import Tensor, read_rows
from bct_jax.models.huggingface.names import (
  Part,
  hf_names,
  hf_parts,
  language_part,
)
from bct_jax.types import PyTree

_BLOCK = 16_000_000  # bytes read at a time

# The part of an array that a device holds: a range of each dimension.
Box = tuple[range, ...]


# --- the tensors of a folder --------------------------------------------------


def find_tensors(folder: Path) -> dict[str, Tensor]:
  """Finds every tensor of a model folder, by name; reads headers only.

  Raises:
    ValueError: there are no safetensors, an index or file is broken, or the two
      contradict each other; names file and tensor.
  """
  return mxfp4.join_parts(_stored_tensors(folder))


def _stored_tensors(folder: Path) -> dict[str, safetensors_file.StoredTensor]:
  """Finds the tensors of a folder as they are stored; see find_tensors."""
  single, index = folder / WEIGHTS, folder / INDEX
  if not index.exists():
    if not single.exists():
      raise ValueError(no_weights(folder))
    return safetensors_file.read_header(single)
  weight_map = read_object(index).get("weight_map")
  if not isinstance(weight_map, dict) or not weight_map:
    raise ValueError(f"{index}: weight_map must map tensors to files")
  files = sorted(set(map(str, weight_map.values())))
  for file in files:
    # A name alone: an index must not lead to files of other folders.
    if not file.endswith(".safetensors") or Path(file).name != file:
      raise ValueError(f"{index}: weight_map names {file!r}: not a safetensors")
  if single.exists() and WEIGHTS not in files:
    raise ValueError(
      f"{folder} has {WEIGHTS} and {INDEX} for other files ({files[0]}, ...): "
      "remove one of the two"
    )
  absent = [file for file in files if not (folder / file).exists()]
  if absent:
    raise ValueError(f"{index} names files that are missing: {absent}")
  by_file = {
    file: safetensors_file.read_header(folder / file) for file in files
  }
  for name, file in weight_map.items():
    if name not in by_file[file]:
      raise ValueError(
        f"{folder / file}: no tensor {name}, which {INDEX} lists"
      )
  for file, tensors in by_file.items():
    for name in tensors:
      if weight_map.get(name) != file:
        raise ValueError(
          f"{folder / file}: tensor {name} is not in {INDEX} for this file"
        )
  return {name: by_file[file][name] for name, file in weight_map.items()}


_FUSED = re.compile(r"(?!mtp\.)(.*\.mlp\.experts)\.(gate_up|down)_proj")


def _split_experts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """Takes matrices of all experts of a layer apart, as parts of their bytes.

  Mixtures of Qwen3.5 are published with gate_up_proj [E, 2 F, D], the gate's
  rows first, and down_proj [E, D, F], where others have tensors of each expert.
  """
  out: dict[str, Tensor] = {}
  for name, tensor in tensors.items():
    found = _FUSED.fullmatch(name)
    if (
      not found
      or len(tensor.shape) != 3
      or not isinstance(tensor, safetensors_file.StoredTensor)
    ):
      out[name] = tensor
      continue
    names = ("gate", "up") if found[2] == "gate_up" else ("down",)
    count, rows, width = tensor.shape
    size = (tensor.stop - tensor.start) // (count * len(names))
    for i in range(count * len(names)):
      expert, part = divmod(i, len(names))
      own = f"{found[1]}.{expert}.{names[part]}_proj.weight"
      start = tensor.start + i * size
      out[own] = tensor._replace(
        shape=(rows // len(names), width), start=start, stop=start + size
      )
  return out


def _match(
  folder: Path, config: ModelConfig, parts: Sequence[Part]
) -> dict[str, Tensor]:
  """Finds the tensor of every part, by the part's name.

  Raises:
    ValueError: tensors are missing, left over, or of another shape or type.
  """
  in_folder = find_tensors(folder)
  if config.num_experts and config.expert_form == "gated":
    in_folder = _split_experts(in_folder)
  names, left_out = language_part(config, in_folder)
  # Some tied checkpoints ship a copy of the embedding as head.
  optional = {"lm_head.weight"} if config.tied else set()
  required = {p.name for p in parts}
  missing = sorted(required - set(names))
  extra = sorted(
    names[n]
    for n in set(names) - required - optional
    if "rotary_emb.inv_freq" not in n
  )
  if missing or extra:
    raise ValueError(
      f"{folder}: tensors missing from the checkpoint: {missing[:8]} "
      f"({len(missing)}), not part of the model: {extra[:8]} ({len(extra)})"
    )
  tensors = {p.name: in_folder[names[p.name]] for p in parts}
  for p in parts:
    tensor = tensors[p.name]
    _ = tensor.dtype  # raises where it is not a float
    if tensor.shape != p.shape:
      raise ValueError(
        f"{tensor.path}: tensor {tensor.name} has shape {tensor.shape}, "
        f"config.json needs {p.shape}"
      )
  if config.tied and "lm_head.weight" in names:
    head = in_folder[names["lm_head.weight"]]
    _check_tied(tensors["model.embed_tokens.weight"], head)
  for what, count in left_out.items() if jax.process_index() == 0 else ():
    whole_folder.say(
      f"{folder}: only the language model is loaded, {what} ({count} tensors) "
      "is left out"
    )
  return tensors


def _check_tied(embed: Tensor, head: Tensor) -> None:
  """Raises unless the head is a copy of the embedding, block by block."""
  same = head.shape == embed.shape and head.kind == embed.kind
  blocks = safetensors_file.row_blocks(embed, 0, embed.shape[0], _BLOCK)
  for at in blocks if same else ():
    a, b = (read_rows(t, *at) for t in (embed, head))
    same = same and a.tobytes() == b.tobytes()
  if not same:
    raise ValueError(
      f"{head.path}: tensor {head.name} is not a copy of {embed.name}, though "
      "config.json says tie_word_embeddings: set it to false, or remove the "
      "tensor"
    )


# --- onto the devices ---------------------------------------------------------


def load_params(
  folder: Path,
  config: ModelConfig,
  abstract: PyTree,
  shardings: PyTree,
) -> PyTree:
  """Reads the params of a model folder onto their devices.

  Args:
    folder: a Hugging Face folder with safetensors files.
    config: its architecture, from `from_hf`.
    abstract: the shapes and dtypes of the params, from jax.eval_shape of
      Decoder.init; tensors of another floating-point type are cast.
    shardings: a NamedSharding per leaf.

  Raises:
    ValueError: a file is damaged; a tensor is missing, left over, of another
      shape or not a float. The message names files and tensors.
  """
  leaves = jax.tree_util.tree_flatten_with_path(abstract)[0]
  parts = hf_parts(config, {path_name(p): x.shape for p, x in leaves})
  tensors = _match(Path(folder), config, parts)
  of_leaf: dict[str, dict[tuple[int, ...], Tensor]] = {}
  for p in parts:
    of_leaf.setdefault(p.leaf, {})[p.index] = tensors[p.name]
  names = hf_names(config)

  with stage("load", len(parts), "tensors") as bar:

    def load_leaf(path, leaf, sharding):
      name = path_name(path)
      out = _load(of_leaf[name], leaf, sharding, names[name].transposed)
      bar(len(of_leaf[name]))
      return out

    return jax.tree_util.tree_map_with_path(load_leaf, abstract, shardings)


def _load(
  tensors: Mapping[tuple[int, ...], Tensor],
  leaf: Any,
  sharding: NamedSharding,
  transposed: bool,
) -> jax.Array:
  """Loads one parameter from its tensors, keyed by their index in it."""
  layered = () not in tensors
  shape = tuple(leaf.shape)
  inner = shape[1:] if layered else shape
  spec = [*sharding.spec, *[None] * (len(shape) - len(sharding.spec))]
  spec = spec[1:] if layered else spec
  if transposed:  # read as it is stored, and transposed on the devices
    inner = (*inner[:-2], inner[-1], inner[-2])
    spec[-2:] = spec[:-3:-1]
  place = NamedSharding(sharding.mesh, P(*spec))
  place_all, place_layer = _programs(shape, leaf.dtype, sharding, transposed)
  if not layered:
    return jax.block_until_ready(
      place_all(_read_array(tensors, inner, leaf.dtype, place))
    )
  out = _zeros(shape, leaf.dtype, sharding)()
  for layer in range(shape[0]):
    of_layer = {at[1:]: t for at, t in tensors.items() if at[0] == layer}
    piece = _read_array(of_layer, inner, leaf.dtype, place)
    # Waited for, so that no second piece is in memory beside it.
    out = jax.block_until_ready(place_layer(out, piece, np.int32(layer)))
  return out


# Cached, so that parameters of one shape, and later loads, compile once.


@functools.lru_cache(maxsize=64)
def _zeros(shape, dtype, sharding):
  """Compiles what makes a parameter of zeros on the devices."""
  return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.lru_cache(maxsize=64)
def _programs(shape, dtype, sharding, transposed: bool):
  """Compiles what makes a piece a parameter, or a layer of one in place."""

  def place_all(piece):
    return jnp.swapaxes(piece, -1, -2) if transposed else piece

  def place_layer(out, piece, layer):
    start = (layer, *[0] * (len(shape) - 1))
    return jax.lax.dynamic_update_slice(out, place_all(piece)[None], start)

  return (
    jax.jit(place_all, out_shardings=sharding),
    jax.jit(place_layer, out_shardings=sharding, donate_argnums=0),
  )


def _read_array(
  tensors: Mapping[tuple[int, ...], Tensor],
  shape: tuple[int, ...],
  dtype: Any,
  sharding: NamedSharding,
) -> jax.Array:
  """Reads an array [*experts, rows, ...] as stored, a tensor per expert.

  Args:
    tensors: by their index among the experts; () without experts.
    shape: of the array.
    dtype: to which the tensors are cast.
    sharding: of the array.
  """
  indices = sharding.addressable_devices_indices_map(shape).values()
  # Replicas on several devices share one copy.
  boxes = {_box(i, shape): i for i in indices if i is not None}
  buffers = {box: _aligned([len(r) for r in box], dtype) for box in boxes}
  for at, tensor in tensors.items():
    targets = []
    for box, buffer in buffers.items():
      outer = box[: len(at)]
      if all(n in r for n, r in zip(at, outer, strict=True)):
        index = tuple(n - r.start for n, r in zip(at, outer, strict=True))
        targets.append((box[len(at) :], buffer[index]))
    _scatter(tensor, targets)
  return jax.make_array_from_callback(
    shape, sharding, lambda index: buffers[_box(index or (), shape)]
  )


def _box(index: Sequence[slice], shape: Sequence[int]) -> Box:
  """Returns the part of an array that slices select."""
  return tuple(range(*i.indices(n)) for i, n in zip(index, shape, strict=True))


def _aligned(shape: Sequence[int], dtype: Any) -> np.ndarray:
  """Makes an empty array that JAX can use on a CPU without copying it."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  raw = np.empty(size + 64, np.uint8)
  skip = -raw.ctypes.data % 64
  return raw[skip : skip + size].view(dtype).reshape(shape)


def _scatter(tensor: Tensor, targets: Sequence[tuple[Box, np.ndarray]]) -> None:
  """Reads a tensor once, into every array that holds a box of it."""
  if not targets:
    return
  first = min(box[0].start for box, _ in targets)
  last = max(box[0].stop for box, _ in targets)
  for start, stop in safetensors_file.row_blocks(tensor, first, last, _BLOCK):
    shared = [
      (max(start, box[0].start), min(stop, box[0].stop)) for box, _ in targets
    ]
    if all(a >= b for a, b in shared):
      continue  # rows of other processes
    block = read_rows(tensor, start, stop)
    for (box, out), (a, b) in zip(targets, shared, strict=True):
      if a < b:
        columns = tuple(slice(r.start, r.stop) for r in box[1:])
        rows = slice(a - box[0].start, b - box[0].start)
        out[rows] = block[(slice(a - start, b - start), *columns)]
