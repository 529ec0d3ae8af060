"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685) of linear layers.

An adapter tree has the shape of the params, reduced to the layers it changes:
`lora_a` [L, in, r] and `lora_b` [L, r, out] where those have `kernel`. Joined
with the params it is what the decoder runs; folded, it is part of the kernels.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax.config import LoraConfig, suggest
from bct_jax.mesh import path_name
from bct_jax.models.config import ModelConfig
from bct_jax.models.huggingface.names import hf_names
from bct_jax.types import PyTree


class Weights(NamedTuple):
  """What a model runs with: its params and, if any, an adapter over them."""

  params: PyTree
  adapter: PyTree = None
  lora: LoraConfig | None = None  # of the adapter


class Frozen(NamedTuple):
  """What a train step is given and leaves as it is.

  Attributes:
    params: those that an adapter is over, or that the objective compares with.
    adapter: of the reference, where the arm goes on training one.
  """

  params: PyTree = None
  adapter: PyTree = None


def scaling(config: LoraConfig) -> float:
  """alpha / r, or alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023, 2312.03732)."""
  rank = math.sqrt(config.rank) if config.rslora else config.rank
  return config.alpha / rank


def target_layers(model: ModelConfig, config: LoraConfig) -> dict[str, str]:
  """Layers an adapter changes: our name -> their Hugging Face module name.

  Names are those within a layer, such as "attn/q" and "self_attn.q_proj".

  Raises:
    ValueError: the pattern matches nothing, or the experts of a mixture.
  """
  names = {
    ours.removeprefix("layers/"): hf.template
    for ours, hf in hf_names(model).items()
    if ours.startswith("layers/") and hf.transposed
  }
  modules = {
    ours.removesuffix("/kernel"): template.removeprefix(
      "model.layers.{}."
    ).removesuffix(".weight")
    for ours, template in names.items()
  }
  found = {
    ours: module
    for ours, module in modules.items()
    if re.search(config.targets, module)
  }
  plain = {k: v for k, v in modules.items() if f"{k}/kernel" in names}
  if not found:
    raise ValueError(
      f"lora.targets = {config.targets!r} matches no linear layer; there are "
      f"{sorted(plain.values())}{suggest(config.targets, plain.values())}"
    )
  wrong = sorted(set(found.values()) - set(plain.values()))
  if wrong:
    raise ValueError(
      f"lora.targets = {config.targets!r} matches {wrong}, which are not plain "
      f"linear layers; those are {sorted(plain.values())}"
    )
  return found


def _nest(leaves: dict[str, Any]) -> PyTree:
  """{"a/b": x} -> {"a": {"b": x}}."""
  out: dict[str, Any] = {}
  for name, leaf in leaves.items():
    *path, last = name.split("/")
    node = out
    for part in path:
      node = node.setdefault(part, {})
    node[last] = leaf
  return out


def _map(params: PyTree, adapter: PyTree, f: Callable[[Any, Any], Any]):
  """The params with f(node, adapter node) at every layer that has one."""
  if "lora_a" in adapter:
    return f(params, adapter)
  return {
    k: _map(v, adapter[k], f) if k in adapter else v for k, v in params.items()
  }


def abstract_adapter(
  params: PyTree, model: ModelConfig, config: LoraConfig
) -> PyTree:
  """Shapes and shardings of an adapter; each follows its kernel.

  Args:
    params: ShapeDtypeStructs with NamedShardings.
    model: the architecture.
    config: rank and targets.

  Raises:
    ValueError: see `targets`; or the rank is above the width of a layer.
  """
  leaves = {}
  for name in target_layers(model, config):
    kernel = params["layers"]
    for part in name.split("/"):
      kernel = kernel[part]
    kernel = kernel["kernel"]
    layers, fan_in, fan_out = kernel.shape
    if config.rank > min(fan_in, fan_out):
      raise ValueError(
        f"lora.rank = {config.rank}: {name} is only {fan_in} x {fan_out}"
      )
    spec = (*kernel.sharding.spec, None, None, None)[:3]
    shapes = {
      "lora_a": ((layers, fan_in, config.rank), P(spec[0], spec[1], None)),
      "lora_b": ((layers, config.rank, fan_out), P(spec[0], None, spec[2])),
    }
    for leaf, (shape, place) in shapes.items():
      leaves[f"layers/{name}/{leaf}"] = jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(kernel.sharding.mesh, place)
      )
  return _nest(leaves)


def init_adapter(abstract: PyTree, seed: int) -> PyTree:
  """An adapter that changes nothing yet: A is random, B zero.

  A is uniform within 1 / sqrt(in), as in peft.
  """

  def make(seed):
    key = jax.random.PRNGKey(seed)
    flat, tree = jax.tree.flatten_with_path(abstract)
    out = []
    for i, (path, leaf) in enumerate(flat):
      if path[-1].key == "lora_b":
        out.append(jnp.zeros(leaf.shape, leaf.dtype))
        continue
      bound = leaf.shape[1] ** -0.5
      out.append(
        jax.random.uniform(
          jax.random.fold_in(key, i), leaf.shape, leaf.dtype, -bound, bound
        )
      )
    return jax.tree.unflatten(tree, out)

  place = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(make, out_shardings=place)(jnp.uint32(seed))


def attach_adapter(weights: Weights) -> PyTree:
  """Params with the adapter beside its kernels, for Decoder; B is scaled."""
  if weights.lora is None:
    return weights.params
  scale = scaling(weights.lora)

  def one(node, low):
    return {**node, "lora_a": low["lora_a"], "lora_b": low["lora_b"] * scale}

  return _map(weights.params, weights.adapter, one)


def attach_adapters(arms: Sequence[Weights]) -> PyTree:
  """Params with the adapters of several arms, for Decoder and its `arms`.

  A is [L, arms, in, r] and B [L, arms, r, out], r the highest rank, with zeros
  where an arm has a lower one or no adapter.

  Args:
    arms: all over the params of the first.
  """
  lows = [{} if w.lora is None else _leaves(w.adapter, w.lora) for w in arms]
  rank = max([0, *(w.lora.rank for w in arms if w.lora is not None)])
  out = {
    path_name(path): x
    for path, x in jax.tree_util.tree_flatten_with_path(arms[0].params)[0]
  }
  for name in sorted(set().union(*lows)):
    axis = 2 if name.endswith("lora_a") else 1  # of the rank
    found = next(low[name] for low in lows if name in low)
    none = jnp.zeros(found.shape, found.dtype)

    def padded(x, axis=axis):
      widths = [(0, rank - x.shape[axis] if i == axis else 0) for i in range(3)]
      return jnp.pad(x, widths)

    out[name] = jnp.stack([padded(low.get(name, none)) for low in lows], axis=1)
  return _nest(out)


def _leaves(adapter: PyTree, config: LoraConfig) -> dict[str, jax.Array]:
  """Names -> leaves of an adapter; B is scaled."""
  scale = {"lora_a": 1.0, "lora_b": scaling(config)}
  flat = jax.tree_util.tree_flatten_with_path(adapter)[0]
  return {path_name(path): x * scale[path[-1].key] for path, x in flat}


def merge_adapter(weights: Weights) -> PyTree:
  """Params with s A B added to the kernels, summed in float32."""
  if weights.lora is None:
    return weights.params
  scale = scaling(weights.lora)

  def one(node, low):
    kernel = node["kernel"]
    change = jnp.einsum(
      "lir,lro->lio", low["lora_a"], low["lora_b"], precision="highest"
    )
    full = kernel.astype(jnp.float32) + scale * change
    return {**node, "kernel": full.astype(kernel.dtype)}

  return _map(weights.params, weights.adapter, one)
