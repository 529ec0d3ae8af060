"""Runs the layers of a model whose params are stacked, by one scan.

The leaves of a part that all layers have are [L, ...]. Where layers differ in
what mixes positions, such as attention or a gated DeltaNet, each mixer has one
entry for each of its own layers, in their order.
"""

# Linear and full layers in turn, 3 to 1, twice:
#
#   layer       0 1 2 3 4 5 6 7
#   deltanet    0 1 2   3 4 5         6 entries
#   attn              0       1       2 entries
#   mlp, norms  0 1 2 3 4 5 6 7       8 entries
#   scan        step 0: all of these up to layer 3; step 1: the others

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bct_jax.mesh import constrain
from bct_jax.models.architecture import Layer, ModelConfig
from bct_jax.models.partition import expert_places
from bct_jax.types import PyTree

REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


def scan_layers(
  run: Callable[..., Any],
  x: jax.Array,
  layers: PyTree,
  config: ModelConfig,
  dtype: Any,
  remat: str,
  gathers_experts: bool = False,
) -> jax.Array:
  """Runs stacked layers; each is compiled once, or once in a period.

  Args:
    run: (layer of the config, x, params, number of the layer) -> (x, ...).
    x: [B, T, D].
    layers: stacked params.
    config: the architecture.
    dtype: of the products.
    remat: one of REMAT.
    gathers_experts: whether layers have experts that are gathered over fsdp.

  Returns:
    [B, T, D].
  """
  period = config.period
  groups = config.num_layers // period

  def step(j, x, group, i):
    # Taken out here: as an input of the checkpoint it would be kept.
    layer = group if period == 1 else layer_of(config, group, j)
    if dtype != jnp.float32:
      layer = jax.tree.map(_cast_late, layer)
      if gathers_experts:
        layer = {**layer, "mlp": _cast_experts(layer["mlp"], config, dtype)}
    return run(config.layers[j], x, layer, i)[0]

  def body(x, xs):
    group, number = xs
    for j in range(period):
      one = functools.partial(step, j)
      if remat != "none":
        one = jax.checkpoint(one, policy=REMAT[remat], prevent_cse=False)
      x = one(x, group, number * period + j)
    return x, None

  if period > 1:  # [entries, ...] -> [groups, entries of a group, ...]
    layers = jax.tree.map(lambda x: x.reshape(groups, -1, *x.shape[1:]), layers)
  return jax.lax.scan(body, x, (layers, jnp.arange(groups)))[0]


def _cast_experts(mlp: PyTree, config: ModelConfig, dtype: Any) -> PyTree:
  """Casts the kernels of experts to the dtype where their parts are.

  XLA would gather them over fsdp first, as float32: twice the bytes.
  """
  out = dict(mlp)
  for name, place in expert_places(config.expert_form, "fsdp").items():
    param = out[name]
    adapted = isinstance(param, Mapping)
    kernel = param["kernel"] if adapted else param
    kernel = constrain(kernel.astype(dtype), *place)
    out[name] = {**param, "kernel": kernel} if adapted else kernel
  return out


@jax.custom_jvp
def _cast_late(x: jax.Array) -> jax.Array:
  """Returns x, a float32 x in a way that XLA casts it only where it is used.

  Without this XLA casts the stacked params before the loop over layers, and
  holds a copy of all of them in the dtype of the products. It does not cast an
  array of bits.
  """
  if x.dtype != jnp.float32:
    return x
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  bits = jax.lax.optimization_barrier(bits)
  return jax.lax.bitcast_convert_type(bits, x.dtype)


_cast_late.defjvp(lambda x, dx: (_cast_late(*x), *dx))


def by_kind(
  layers: Sequence[Layer],
  kind_of: Callable[[Layer], Any],
  make: Callable[[Any], PyTree],
):
  """Calls `make` once per kind of layer, and returns a look-up by layer.

  It takes a layer and its number. The number may be traced, and only the mixer
  of the layer be known: the arrays of all kinds with that mixer are then
  stacked and indexed by it. Linear layers have no kind, and are not looked up.
  """
  attending = [layer for layer in layers if not layer.linear]
  values = {k: make(k) for k in dict.fromkeys(map(kind_of, attending))}
  stacks = {}
  for mixer in {layer.mixer for layer in attending}:
    own = list(dict.fromkeys(kind_of(x) for x in layers if x.mixer == mixer))
    if len(own) > 1:
      numbers = [
        own.index(kind_of(x)) if x.mixer == mixer else 0 for x in layers
      ]
      stacked = jax.tree.map(lambda *x: jnp.stack(x), *(values[k] for k in own))
      stacks[mixer] = np.array(numbers), stacked

  def value_of(layer, i):
    if isinstance(i, int) or layer.mixer not in stacks:
      return values[kind_of(layer)]
    numbers, stacked = stacks[layer.mixer]
    return jax.tree.map(lambda x: x[jnp.asarray(numbers)[i]], stacked)

  return value_of


def layer_of(config: ModelConfig, layers: PyTree, i: int) -> PyTree:
  """Returns the params of layer i, of all layers or of those of a period."""
  out = {}
  for name, part in layers.items():
    there = config.layers_of(name)
    if i in there:
      at = there.index(i)
      out[name] = jax.tree.map(lambda x, at=at: x[at], part)
  return out


def layers_at(part: PyTree, numbers: Sequence[int], layers: int) -> PyTree:
  """Takes the entries of some layers out of those of all layers."""
  if len(numbers) == layers:
    return part
  return jax.tree.map(lambda x: x[np.array(numbers)], part)
