"""Makes, attaches and merges low-rank adapters of linear layers.

An adapter (LoRA: Hu et al. 2021, arXiv 2106.09685) adds s (x A) B to x W, with
s from `scaling`. Its tree has the shape of the params, reduced to the layers
that it changes: `lora_a` [L, in, r] and `lora_b` [L, r, out] where the params
have `kernel` [L, in, out]. Experts of a mixture have one each: the params have
an array [L, E, in, out], and the adapter A [L, E, in, r] and B [L, E, r, out].
Attached, it stands beside the kernels, and the decoder runs both. Merged, it is
part of the kernels.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax.config import LoraConfig, suggest
from bct_jax.mesh import path_name
from bct_jax.models.architecture import ModelConfig
from bct_jax.models.huggingface.names import hf_names
from bct_jax.types import PyTree


class Weights(NamedTuple):
  """Holds what a model runs with.

  Attributes:
    params: of the decoder.
    adapter: a low-rank adapter over them, or None.
    lora: the configuration of the adapter.
  """

  params: PyTree
  adapter: PyTree = None
  lora: LoraConfig | None = None


class AdaptedLayers(NamedTuple):
  """Describes what an adapter adds to one linear layer of the blocks.

  Attributes:
    name: of the linear layer here, such as "attn/q".
    ranks: in each block that has the layer; 0 adds nothing there.
    alphas: in each of these blocks.
  """

  name: str
  ranks: tuple[int, ...]
  alphas: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class LayeredLora(LoraConfig):
  """Describes an adapter made elsewhere, whose rank and scale may vary.

  Arrays have the highest rank, `rank`, and those of experts the highest of the
  matrix. Zeros fill up A and B where the rank is lower. Training leaves them
  zero: the gradient of each has the other as a factor.
  """

  layers: tuple[AdaptedLayers, ...] = ()


def config_from_json(values: Mapping[str, Any]) -> LoraConfig:
  """Makes the configuration of an adapter from what `asdict` made of it."""
  if "layers" not in values:
    return LoraConfig(**values)
  layers = tuple(
    AdaptedLayers(name, tuple(ranks), tuple(alphas))
    for name, ranks, alphas in values["layers"]
  )
  return LayeredLora(**{**values, "layers": layers})


def scaling(config: LoraConfig, name: str, a: Any) -> Any:
  """Returns alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732).

  Args:
    config: of the adapter.
    name: of one of its linear layers, such as "attn/q".
    a: A of this layer, [L, in, r] or [L, E, in, r].

  Returns:
    A number for all entries of A, or one for each, with as many axes as `a`.
  """

  def scale(alpha: float, rank: int) -> float:
    return alpha / (math.sqrt(rank) if config.rslora else rank)

  if not isinstance(config, LayeredLora):
    return scale(config.alpha, a.shape[-1])
  _, ranks, alphas = next(x for x in config.layers if x.name == name)
  pairs = zip(alphas, ranks, strict=True)
  scales = [scale(alpha, rank) if rank else 0.0 for alpha, rank in pairs]
  return np.asarray(scales, np.float32).reshape(-1, *[1] * (a.ndim - 1))


def linear_layers(model: ModelConfig) -> dict[str, str]:
  """Maps the linear layers of a block to the names of their modules.

  They are as "attn/q" -> "self_attn.q_proj", and of experts as "mlp/up" ->
  "mlp.experts.{}.up_proj". The router of a mixture is none.
  """
  names = {
    ours.removeprefix("layers/"): hf.template.removeprefix(
      "model.layers.{}."
    ).removesuffix(".weight")
    for ours, hf in hf_names(model).items()
    if ours.startswith("layers/")
  }
  experts = expert_layers(model)
  return {
    ours.removesuffix("/kernel"): module
    for ours, module in names.items()
    if ours.endswith("/kernel") or ours in experts
  }


def expert_layers(model: ModelConfig) -> tuple[str, ...]:
  """Lists the layers that each expert of a mixture has, as "mlp/up"."""
  if not model.num_experts:
    return ()
  clamped = model.expert_form == "clamped"
  parts = ("gate_up", "down") if clamped else ("gate", "up", "down")
  return tuple(f"mlp/{part}" for part in parts)


def rank_of(model: ModelConfig, config: LoraConfig, name: str) -> int:
  """Returns the rank of an adapter in a layer; of one made elsewhere, the most.

  Raises:
    ValueError: `split_rank`, and the rank does not split over the experts.
  """
  if name not in expert_layers(model):
    return config.rank
  if isinstance(config, LayeredLora):
    return max(next(x.ranks for x in config.layers if x.name == name))
  if not config.split_rank:
    return config.rank
  active = model.experts_per_token
  if config.rank % active:
    raise ValueError(
      f"lora.split_rank: lora.rank = {config.rank} does not divide by the "
      f"{active} experts of a token"
    )
  return config.rank // active


def target_layers(model: ModelConfig, config: LoraConfig) -> dict[str, str]:
  """Finds the layers that an adapter changes.

  Returns:
    Our name -> the module's name in Hugging Face, both within a block, such as
    "attn/q" -> "self_attn.q_proj".

  Raises:
    ValueError: the pattern matches nothing, or some experts and not others.
  """
  plain = linear_layers(model)
  if isinstance(config, LayeredLora):
    return {x.name: plain[x.name] for x in config.layers}

  def matches(module: str) -> bool:
    # What linear attention projects to is one in_proj, as far as targets go,
    # but for its decays and rates (b and a), which have a number for each head.
    short = re.sub(r"in_proj_(qkvz?|z)$", "in_proj", module)
    found = {
      any(re.search(config.targets, x.format(expert)) for x in (module, short))
      for expert in range(model.num_experts or 1)
    }
    if len(found) > 1:
      raise ValueError(
        f"lora.targets = {config.targets!r} matches some experts of "
        f"{module.format('N')} and not others; it must match all or none"
      )
    return found.pop()

  targets = {ours: module for ours, module in plain.items() if matches(module)}
  if not targets:
    raise ValueError(
      f"lora.targets = {config.targets!r} matches no linear layer; there are "
      f"{sorted(plain.values())}{suggest(config.targets, plain.values())}"
    )
  return targets


def find_layer(params: PyTree, name: str) -> Any:
  """Returns the subtree of a linear layer, such as "attn/q", of all blocks."""
  node = params["layers"]
  for part in name.split("/"):
    node = node[part]
  return node


def kernel_of(layer: Any) -> Any:
  """Returns the matrix of a linear layer; experts have nothing else."""
  return layer["kernel"] if isinstance(layer, Mapping) else layer


def _nest(leaves: dict[str, Any]) -> PyTree:
  """Makes a tree of slash-joined names: {"a/b": x} -> {"a": {"b": x}}."""
  out: dict[str, Any] = {}
  for name, leaf in leaves.items():
    *path, last = name.split("/")
    node = out
    for part in path:
      node = node.setdefault(part, {})
    node[last] = leaf
  return out


def _map(weights: Weights, f: Callable[[Any, Any, Any], Any]) -> PyTree:
  """Replaces every layer with an adapter by f(layer, its adapter, its scale).

  Returns the params unchanged without an adapter.
  """
  lora = weights.lora
  if lora is None:
    return weights.params

  def replace(params: PyTree, adapter: PyTree, *path: str) -> PyTree:
    if "lora_a" in adapter:
      scale = scaling(lora, "/".join(path[1:]), adapter["lora_a"])
      return f(params, adapter, scale)
    return {
      k: replace(v, adapter[k], *path, k) if k in adapter else v
      for k, v in params.items()
    }

  return replace(weights.params, weights.adapter)


def abstract_adapter(
  params: PyTree, model: ModelConfig, config: LoraConfig
) -> PyTree:
  """Describes an adapter by shapes and shardings, which follow its kernels.

  Args:
    params: ShapeDtypeStructs with NamedShardings.
    model: the architecture.
    config: rank and targets.

  Raises:
    ValueError: see `target_layers`; or the rank is above the width of a layer.
  """
  leaves = {}
  for name in target_layers(model, config):
    kernel = kernel_of(find_layer(params, name))
    *lead, fan_in, fan_out = kernel.shape
    rank = rank_of(model, config, name)
    made_here = not isinstance(config, LayeredLora)
    if made_here and rank > min(fan_in, fan_out):
      raise ValueError(
        f"lora.rank = {rank}: {name} is only {fan_in} x {fan_out}"
      )
    given = (*kernel.sharding.spec, *[None] * kernel.ndim)[: kernel.ndim]
    *spec, of_in, of_out = given
    shapes = {
      "lora_a": ((*lead, fan_in, rank), P(*spec, of_in, None)),
      "lora_b": ((*lead, rank, fan_out), P(*spec, None, of_out)),
    }
    for leaf, (shape, place) in shapes.items():
      leaves[f"layers/{name}/{leaf}"] = jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(kernel.sharding.mesh, place)
      )
  return _nest(leaves)


def init_adapter(abstract: PyTree, seed: int) -> PyTree:
  """Makes an adapter that changes nothing yet: A is random, B is zero.

  A is uniform within 1 / sqrt(in), as in peft.

  Args:
    abstract: of `abstract_adapter`.
    seed: of A.
  """

  def make(seed):
    key = jax.random.PRNGKey(seed)
    flat, tree = jax.tree.flatten_with_path(abstract)
    out = []
    for i, (path, leaf) in enumerate(flat):
      if path[-1].key == "lora_b":
        out.append(jnp.zeros(leaf.shape, leaf.dtype))
        continue
      bound = leaf.shape[-2] ** -0.5
      out.append(
        jax.random.uniform(
          jax.random.fold_in(key, i), leaf.shape, leaf.dtype, -bound, bound
        )
      )
    return jax.tree.unflatten(tree, out)

  place = jax.tree.map(lambda x: x.sharding, abstract)
  return jax.jit(make, out_shardings=place)(jnp.uint32(seed))


def attach_adapter(weights: Weights) -> PyTree:
  """Puts the adapter beside its kernels, for Decoder; B takes the scale."""

  def attach(layer, low, scale):
    layer = layer if isinstance(layer, Mapping) else {"kernel": layer}
    return {**layer, "lora_a": low["lora_a"], "lora_b": low["lora_b"] * scale}

  return _map(weights, attach)


def attach_adapters(arms: Sequence[Weights]) -> PyTree:
  """Puts the adapters of several arms beside the kernels, for Decoder.

  A is [L, arms, in, r] and B [L, arms, r, out], or [L, arms, E, ...] of
  experts, with r the highest rank of the layer. Zeros fill up an arm of lower
  rank, or without an adapter.

  Args:
    arms: weights, all over the params of the first.
  """
  lows = [{} if w.lora is None else _leaves(w.adapter, w.lora) for w in arms]
  out = {
    path_name(path): x
    for path, x in jax.tree_util.tree_flatten_with_path(arms[0].params)[0]
  }
  for name in sorted(set().union(*lows)):
    axis = -1 if name.endswith("lora_a") else -2  # of the rank
    there = [low[name] for low in lows if name in low]
    rank = max(x.shape[axis] for x in there)
    zeros = jnp.zeros(there[0].shape, there[0].dtype)

    def fill_up(x, axis=axis, rank=rank):
      widths = [(0, 0)] * x.ndim
      widths[axis] = (0, rank - x.shape[axis])
      return jnp.pad(x, widths)

    layer = name.rpartition("/")[0]
    if layer in out:  # experts, whose kernel gets a name beside its adapter
      out[f"{layer}/kernel"] = out.pop(layer)
    leaves = [fill_up(low.get(name, zeros)) for low in lows]
    out[name] = jnp.stack(leaves, axis=1)
  return _nest(out)


def _leaves(adapter: PyTree, config: LoraConfig) -> dict[str, jax.Array]:
  """Returns the leaves of an adapter by name; B takes the scale."""
  out = {
    path_name(path): x
    for path, x in jax.tree_util.tree_flatten_with_path(adapter)[0]
  }
  for name in out:
    layer, _, leaf = name.removeprefix("layers/").rpartition("/")
    if leaf == "lora_b":
      a = out[f"layers/{layer}/lora_a"]
      out[name] = out[name] * scaling(config, layer, a)
  return out


def merge_adapter(weights: Weights) -> PyTree:
  """Adds s A B to the kernels, in float32, and returns the params."""

  def merge(layer, low, scale):
    kernel = kernel_of(layer)
    change = jnp.einsum(
      "...ir,...ro->...io", low["lora_a"], low["lora_b"], precision="highest"
    )
    full = kernel.astype(jnp.float32) + scale * change
    merged = full.astype(kernel.dtype)
    return {**layer, "kernel": merged} if layer is not kernel else merged

  return _map(weights, merge)
