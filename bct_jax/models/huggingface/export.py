"""Exports params as an ordinary Hugging Face folder.

Tensors are gathered from the devices and written one after the other. So the
host holds a layer of one parameter at a time, whatever the size of the model.
"""

import dataclasses
import functools
import itertools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bct_jax.infra import processes, whole_folder
from bct_jax.infra.files import read_object
from bct_jax.infra.formats import number
from bct_jax.infra.progress import stage
from bct_jax.mesh import path_name, to_host
from bct_jax.models.architecture import ModelConfig
from bct_jax.models.config import text_config
from bct_jax.models.huggingface import safetensors_file
from bct_jax.models.huggingface.files import INDEX, WEIGHTS
from bct_jax.models.huggingface.names import Part, hf_names, hf_parts
from bct_jax.types import PyTree

DTYPES = ("float32", "bfloat16", "float16")
SHARD_BYTES = 5_000_000_000
MADE_BY = "bct_jax export"
# What a folder may have besides config.json and weights, all of it optional.
_COPIED = (
  "generation_config.json",
  "tokenizer.json",
  "tokenizer.model",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "vocab.txt",
  "merges.txt",
  "chat_template.jinja",
  "chat_template.json",
)


@dataclasses.dataclass(frozen=True)
class Exported:
  """Describes what `export_hf` wrote.

  Attributes:
    folder: the new model folder.
    dtype: of all weights.
    tensors: how many there are.
    size: of the weights, in bytes.
    files: names of the files of weights.
  """

  folder: Path
  dtype: str
  tensors: int
  size: int
  files: tuple[str, ...]

  def __str__(self) -> str:
    """Renders the description as a line."""
    return (
      f"{self.folder}: {self.tensors} tensors, {self.size / 1e6:,.1f} MB of "
      f"{self.dtype} in {len(self.files)} file(s)"
    )


def check_target(out: Path) -> None:
  """Raises ModelSourceError where `export_hf` would refuse to write."""
  whole_folder.check_writable(Path(out), {"made_by": MADE_BY})


def export_hf(
  params: PyTree,
  config: ModelConfig,
  source: Path,
  out: Path,
  dtype: str | None = None,
  shard_bytes: int = SHARD_BYTES,
  about: Mapping[str, Any] | None = None,
  chat_template: str | None = None,
) -> Exported:
  """Writes params as a folder that transformers and this package load.

  All processes must call it. Each takes part in gathering, and the first
  writes. The folder appears whole or not at all. It replaces a folder that an
  earlier export wrote, and nothing else.

  Args:
    params: of a Decoder, sharded in any way.
    config: the architecture, read from `source`.
    source: the model folder from which config.json, the tokenizer, its chat
      template and generation_config.json are taken. For a model with an image
      encoder, config.json becomes that of the language model.
    out: the folder to write.
    dtype: one of DTYPES; None is that of the params.
    shard_bytes: size of a file of weights; only a larger tensor exceeds it.
    about: JSON values to keep in the folder's manifest.
    chat_template: in place of the source's own.

  Raises:
    ModelSourceError: something else is at `out`, or it cannot be written.
    ValueError: the dtype is not supported or too narrow for a value, or a
      parameter has no place in a checkpoint.
  """
  source, out = Path(source), Path(out)
  flat = jax.tree_util.tree_flatten_with_path(params)[0]
  leaves = {path_name(path): leaf for path, leaf in flat}
  stored_dtype = _dtype(leaves, dtype)
  parts = hf_parts(config, {name: x.shape for name, x in leaves.items()})
  shards = _plan(parts, stored_dtype.itemsize, shard_bytes)
  arrays = _tensors(parts, leaves, config, stored_dtype)
  processes.run_on_first("target of the export", lambda: check_target(out))

  def build(target: Path) -> None:
    _write_shards(target, shards, arrays, stored_dtype)
    whole_folder.write_json(
      target / "config.json", _config(source, config, stored_dtype.name)
    )
    _copy_tokenizer(source, target, chat_template)

  if processes.is_first():
    key = {"made_by": MADE_BY, "dtype": stored_dtype.name, **(about or {})}
    out = whole_folder.write_folder(out, key, build)
  else:
    for _ in arrays:
      pass
  processes.barrier("end of the export")
  size = sum(map(_size, parts)) * stored_dtype.itemsize
  return Exported(out, stored_dtype.name, len(parts), size, tuple(shards))


def _dtype(leaves: Mapping[str, Any], name: str | None) -> np.dtype:
  """Returns the dtype to write; raises ValueError if it is not in DTYPES."""
  if name is None:
    names = sorted({x.dtype.name for x in leaves.values()})
    if len(names) > 1:
      raise ValueError(f"params are of {', '.join(names)}: name one dtype")
    name = names[0]
  if name not in DTYPES:
    raise ValueError(f"dtype {name!r}: one of {', '.join(DTYPES)}")
  return np.dtype(jnp.dtype(name))


def _size(part: Part) -> int:
  """Counts the numbers of a tensor."""
  return int(np.prod(part.shape))


def _plan(
  parts: list[Part], itemsize: int, limit: int
) -> dict[str, list[Part]]:
  """Plans which tensors each file holds, before any of them is gathered."""
  groups, room = [[]], limit
  for part in parts:
    size = _size(part) * itemsize
    if groups[-1] and size > room:
      groups.append([])
      room = limit
    groups[-1].append(part)
    room -= size
  if len(groups) == 1:
    return {WEIGHTS: parts}
  return {
    f"model-{i:05d}-of-{len(groups):05d}.safetensors": group
    for i, group in enumerate(groups, 1)
  }


def _write_shards(
  target: Path,
  shards: Mapping[str, list[Part]],
  arrays: Iterator[np.ndarray],
  dtype: np.dtype,
) -> None:
  """Writes the files of weights, and their index if there are several.

  Args:
    target: the folder.
    shards: the tensors of each file.
    arrays: of all tensors, in their order.
    dtype: of all tensors.
  """
  with stage("export", sum(map(len, shards.values())), "tensors") as bar:
    for file, group in shards.items():
      shapes = {p.name: p.shape for p in group}
      of_file = itertools.islice(arrays, len(group))
      safetensors_file.write(target / file, shapes, dtype, of_file)
      bar(len(group))
  if WEIGHTS not in shards:
    whole_folder.write_json(target / INDEX, _index(shards, dtype.itemsize))


def _index(shards: Mapping[str, list[Part]], itemsize: int) -> dict[str, Any]:
  """Returns the index that says which file holds each tensor."""
  count = sum(_size(p) for group in shards.values() for p in group)
  return {
    "metadata": {"total_parameters": count, "total_size": count * itemsize},
    "weight_map": {
      p.name: file for file, group in shards.items() for p in group
    },
  }


# Decoders of models that are published with an image encoder, as transformers
# names their classes.
_DECODERS = {
  "gemma3_text": "Gemma3ForCausalLM",
  "gemma4_text": "Gemma4ForCausalLM",
  "gemma4_unified_text": "Gemma4UnifiedForCausalLM",
  "mistral": "MistralForCausalLM",
  "ministral3": "Ministral3ForCausalLM",
  "qwen3_5_text": "Qwen3_5ForCausalLM",
  "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
}


def _config(source: Path, model: ModelConfig, dtype: str) -> dict[str, Any]:
  """Returns the source's config.json, changed to what is exported."""
  raw = read_object(source / "config.json")
  # Readers older than transformers 5 know only the second spelling.
  out = {**text_config(raw), "dtype": dtype, "torch_dtype": dtype}
  # What these say of is not written.
  for field in [k for k in out if k.startswith("mtp_")]:
    del out[field]
  out.pop("quantization_config", None)
  if out["model_type"] != raw["model_type"]:
    out["architectures"] = [_DECODERS[model.family]]
    # Some are published without these. A language model alone needs them: the
    # defaults are those of another size.
    out["vocab_size"] = model.vocab_size
    out["num_attention_heads"] = model.num_heads
    out["num_key_value_heads"] = model.num_kv_heads
    out["head_dim"] = model.head_dim
  return out


def _copy_tokenizer(source: Path, target: Path, template: str | None) -> None:
  """Copies the files of _COPIED, with a chat template in place of theirs."""
  for name in _COPIED:
    if (source / name).is_file():
      shutil.copyfile(source / name, target / name)
  if template is not None:
    # It goes before what tokenizer_config.json says.
    (target / "chat_template.jinja").write_text(template, "utf-8")


# --- from the devices ---------------------------------------------------------


@functools.partial(jax.jit, static_argnames="transposed")
def _as_stored(leaf: jax.Array, layer: Any, transposed: bool) -> jax.Array:
  """Returns a layer of a parameter, or all of it, as a checkpoint has it."""
  if layer is not None:
    leaf = jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False)
  return jnp.swapaxes(leaf, -1, -2) if transposed else leaf


def _tensors(
  parts: list[Part],
  leaves: Mapping[str, jax.Array],
  config: ModelConfig,
  dtype: np.dtype,
) -> Iterator[np.ndarray]:
  """Yields the tensors of a checkpoint, gathered one layer at a time."""
  names = hf_names(config)
  # Experts of a layer follow each other and are gathered together.
  for (leaf, layer), group in itertools.groupby(
    parts, lambda p: (p.leaf, p.index[:1])
  ):
    at = np.int32(layer[0]) if layer else None
    value = to_host(_as_stored(leaves[leaf], at, names[leaf].transposed))
    for part in group:
      yield _cast(value[part.index[1:]], dtype, part.name)
    del value  # before the next layer is gathered


def _cast(x: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
  """Casts a tensor; raises ValueError if a finite value becomes infinite.

  It does so on the host: devices may flush the smallest numbers to zero.
  """
  with np.errstate(over="ignore", invalid="ignore"):
    out = x.astype(dtype, copy=False)
    overflow = ~np.isfinite(out)
    if overflow.any():
      overflow &= np.isfinite(x)
  if overflow.any():
    raise ValueError(
      f"tensor {name}: a value of {number(float(x[overflow][0]))} does not fit "
      f"{dtype.name}; export as bfloat16 or float32"
    )
  return out
