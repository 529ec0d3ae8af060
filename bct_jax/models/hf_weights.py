"""Hugging Face safetensors to sharded parameters, without torch.

Each device reads the slices it holds; no process makes a copy of the model.
"""

import itertools
import json
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from bct_jax.mesh import path_name
from bct_jax.models.config import ModelConfig
from bct_jax.models.names import HfName, hf_names
from bct_jax.types import PyTree


def _files(folder: Path) -> dict[str, Path]:
  """Tensor name -> safetensors file, from the index or the only file."""
  single = folder / "model.safetensors"
  index = folder / "model.safetensors.index.json"
  if index.exists():
    names = json.loads(index.read_text("utf-8"))["weight_map"]
    files = {name: folder / file for name, file in names.items()}
  elif single.exists():
    with _open(single) as f:
      files = dict.fromkeys(f.keys(), single)
  else:
    other = sorted(p.name for p in folder.glob("*.bin")) or "none"
    raise ValueError(
      f"{folder}: no model.safetensors (found .bin files: {other}); pickled "
      "weights are not read, convert them with transformers' save_pretrained"
    )
  absent = sorted({str(p) for p in files.values() if not p.exists()})
  if absent:
    raise ValueError(f"{index} names files that are missing: {absent}")
  return files


def _open(path: Path):
  try:
    return safe_open(path, framework="numpy")
  except (SafetensorError, OSError) as e:
    raise ValueError(f"{path}: not a readable safetensors file: {e}") from None


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
    abstract: shapes and dtypes to make, from jax.eval_shape of Decoder.init;
      tensors of another floating-point type are cast.
    shardings: a NamedSharding per leaf.

  Raises:
    ValueError: a tensor is missing, left over or of another shape; the message
      lists the names.
  """
  files = _files(Path(folder))
  names = hf_names(config)
  wanted = _wanted(names, abstract)
  # Some tied checkpoints ship a copy of the embedding as head.
  spare = {"lm_head.weight"} if config.tied else set()
  missing = sorted(set(wanted) - set(files))
  extra = sorted(
    n
    for n in set(files) - set(wanted) - spare
    if "rotary_emb.inv_freq" not in n
  )
  if missing or extra:
    raise ValueError(
      f"{folder}: tensors missing from the checkpoint: {missing[:8]} "
      f"({len(missing)}), not part of the model: {extra[:8]} ({len(extra)})"
    )
  opened = {path: _open(path) for path in sorted(set(files.values()))}
  slices = {n: opened[files[n]].get_slice(n) for n in wanted}
  for name, shape in wanted.items():
    found = tuple(slices[name].get_shape())
    if found != shape:
      raise ValueError(
        f"{files[name]}: tensor {name} has shape {found}, config.json needs "
        f"{shape}"
      )

  def one(path, leaf, sharding):
    hf_name = names[path_name(path)]

    def shard(index):
      index = [
        range(*i.indices(n)) for i, n in zip(index, leaf.shape, strict=True)
      ]
      out = np.empty([len(i) for i in index], leaf.dtype)
      stacked, inner = index[: hf_name.stacked], index[hf_name.stacked :]
      inner = tuple(slice(i.start, i.stop) for i in inner)
      for at in itertools.product(*(enumerate(i) for i in stacked)):
        where = tuple(i for i, _ in at)
        x = slices[hf_name.template.format(*(n for _, n in at))]
        x = x[inner[::-1] if hf_name.transposed else inner]
        out[where] = x.T if hf_name.transposed else x
      return out

    return jax.make_array_from_callback(leaf.shape, sharding, shard)

  return jax.tree_util.tree_map_with_path(one, abstract, shardings)


def _wanted(names: dict[str, HfName], abstract: PyTree) -> dict[str, tuple]:
  """Hugging Face name -> shape of every tensor the params are made of."""
  out = {}
  for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]:
    name = names[path_name(path)]
    shape = tuple(leaf.shape[name.stacked :])
    shape = shape[::-1] if name.transposed else shape
    for at in itertools.product(*map(range, leaf.shape[: name.stacked])):
      out[name.template.format(*at)] = shape
  return out
