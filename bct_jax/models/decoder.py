"""The decoder of all model families, as pure functions of params and arrays.

The params of its blocks (see layers.py) are stacked on a leading layer
dimension and run by one `lax.scan`. What differs between layers, windows and
rotary positions, is made before it, once per kind. For decoding, `unstack`
gives the layers as a list, which a plain loop runs without slicing a stacked
array at every token. Causality, padding and packing all follow from `positions`
and `segments`: a query sees the keys of its own segment that are not after it,
and in a layer with a window not too far before it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from bct_jax.mesh import ROWS, constrain
from bct_jax.models.config import ModelConfig
from bct_jax.models.layers import Block, RMSNorm, rope_angles
from bct_jax.types import PyTree


@struct.dataclass
class Cache:
  """Keys and values of past tokens; slots with segment 0 are never seen."""

  keys: Any  # per layer or stacked: [L, B, S, K, H]
  values: Any
  positions: jax.Array  # [B, S] int32
  segments: jax.Array  # [B, S] int32


REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Pure functions of (params, arrays) for one architecture.

  Attributes:
    config: the architecture.
    dtype: of activations and matrix products; norms, softmax, rotary angles
      and logits are float32 whatever it is.
    remat: what the backward pass recomputes: none, dots (all but matrix
      products) or full (each block).
  """

  config: ModelConfig
  dtype: Any = jnp.float32
  remat: str = "full"

  def __post_init__(self):
    if self.remat not in REMAT:
      raise ValueError(f"remat {self.remat!r}: choose one of {list(REMAT)}")

  @property
  def block(self) -> Block:
    return Block(self.config, self.dtype)

  @property
  def _norm(self) -> RMSNorm:
    return RMSNorm(self.config.norm_eps, self.config.norm_plus_one)

  def init(self, rng: jax.Array) -> PyTree:
    """Random float32 params; jax.eval_shape of it gives shapes alone."""
    c = self.config
    rngs = jax.random.split(rng, c.num_layers + 2)
    x = jnp.zeros((1, 1, c.width), self.dtype)
    angles = rope_angles(jnp.zeros((1, 1), jnp.int32), None, c.head_dim)
    mask = jnp.ones((1, 1, 1, 1), bool)

    def layer(key):
      return self.block.init(key, x, angles, mask)["params"]

    normal = nn.initializers.normal(0.02)
    params = {
      "embed": normal(rngs[0], (c.vocab_size, c.width), jnp.float32),
      "layers": jax.vmap(layer)(rngs[2:]),
      "norm": self._norm.init(rngs[0], x)["params"],
    }
    if not c.tied:
      params["head"] = normal(rngs[1], (c.width, c.vocab_size), jnp.float32)
    return params

  def hidden(
    self,
    params: PyTree,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
  ) -> jax.Array:
    """Final hidden states [B, T, D] of whole rows (see types.Model)."""
    return self._forward(params, tokens, positions, segments, None)[0]

  def prefill(self, params, tokens, positions, segments, slots: int):
    """Runs prompts and makes a cache with room for `slots` tokens.

    Args:
      tokens, positions, segments: [B, P]; segment 0 marks padding.
      slots: size S of the cache, at least P.

    Returns:
      hidden [B, P, D] and a Cache whose first P slots are filled.
    """
    x, (keys, values) = self._forward(params, tokens, positions, segments, None)
    room = slots - tokens.shape[1]

    def grow(kv):  # [..., B, P, K, H] -> [..., B, S, K, H]
      pad = [(0, 0)] * kv.ndim
      pad[-3] = (0, room)
      return jnp.pad(kv, pad)

    def grow_rows(r):
      return jnp.pad(r, ((0, 0), (0, room)))

    keys, values = jax.tree.map(grow, (keys, values))
    return x, Cache(keys, values, grow_rows(positions), grow_rows(segments))

  def extend(self, params, tokens, positions, segments, cache, index):
    """T more tokens per row, [B, T], written to the slots from `index` on.

    Returns:
      hidden [B, T, D] and the new Cache.
    """
    x, (keys, values) = self._forward(
      params, tokens, positions, segments, cache
    )

    def write(old, new):  # along S, the third dimension from the right
      start = [0] * old.ndim
      start[-3] = index
      return jax.lax.dynamic_update_slice(old, new.astype(old.dtype), start)

    def write_rows(old, new):
      return jax.lax.dynamic_update_slice(old, new, (0, index))

    return x, Cache(
      keys=jax.tree.map(write, cache.keys, keys),
      values=jax.tree.map(write, cache.values, values),
      positions=write_rows(cache.positions, positions),
      segments=write_rows(cache.segments, segments),
    )

  def logits(self, params, hidden):  # [..., D] -> [..., V]
    """Scores over the vocabulary in float32 (see types.Model)."""
    table = params["embed"] if self.config.tied else params["head"]
    form = "...d,vd->...v" if self.config.tied else "...d,dv->...v"
    out = jnp.einsum(
      form,
      hidden,
      table.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    cap = self.config.final_softcap
    return out if cap is None else cap * jnp.tanh(out / cap)

  def _embed(self, params, tokens):  # [B, T] -> [B, T, D]
    # The width is gathered before the look-up. Left to itself, XLA would give
    # every device all rows of the result to move from one layout to the other.
    table = constrain(params["embed"].astype(self.dtype), "tensor", None)
    x = table[tokens]
    if self.config.embed_scale != 1:
      x *= jnp.asarray(self.config.embed_scale, self.dtype)
    return constrain(x, ROWS, None, None)

  def _forward(self, params, tokens, positions, segments, cache: Cache | None):
    """Hidden states [B, T, D] and the new keys and values of each layer."""
    c = self.config
    key_positions, key_segments = positions, segments
    if cache is not None:
      key_positions = jnp.concatenate([cache.positions, positions], axis=1)
      key_segments = jnp.concatenate([cache.segments, segments], axis=1)
    distance = positions[:, :, None] - key_positions[:, None, :]  # [B, T, S+T]
    seen = (
      (segments[:, :, None] == key_segments[:, None, :])
      & (key_segments[:, None, :] > 0)
      & (distance >= 0)
    )
    mask_of = _by_kind(
      [layer.window for layer in c.layers],
      lambda w: (seen if w is None else seen & (distance < w))[:, None],
    )  # [B, 1, T, S+T]
    angles_of = _by_kind(
      [layer.rope for layer in c.layers],
      lambda rope: rope_angles(positions, rope, c.head_dim),
    )
    x = self._embed(params, tokens)

    def run(x, layer, i, past):
      return self.block.apply(
        {"params": layer}, x, angles_of(i), mask_of(i), past
      )

    layers = params["layers"]
    if isinstance(layers, (list, tuple)):
      kvs = []
      for i, layer in enumerate(layers):
        past = None if cache is None else (cache.keys[i], cache.values[i])
        x, kv = run(x, layer, i, past)
        kvs.append(kv)
      kvs = ([k for k, _ in kvs], [v for _, v in kvs])
    else:
      past = None if cache is None else (cache.keys, cache.values)
      body = lambda x, xs: run(x, *xs)  # noqa: E731
      if self.remat != "none":
        body = jax.checkpoint(body, policy=REMAT[self.remat], prevent_cse=False)
      x, kvs = jax.lax.scan(body, x, (layers, jnp.arange(c.num_layers), past))
    out: Any = self._norm.apply({"params": params["norm"]}, x)
    return out, kvs


def _by_kind(kinds: Sequence[Any], make: Callable[[Any], PyTree]):
  """A function from a layer's number to `make` of its kind, made once each.

  The number may be traced: the arrays of all kinds are then indexed by it.
  """
  distinct = list(dict.fromkeys(kinds))
  made = [make(kind) for kind in distinct]
  if len(made) == 1:
    return lambda i: made[0]
  which = np.array([distinct.index(kind) for kind in kinds])
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *made)

  def of(i):
    if isinstance(i, int):
      return made[which[i]]
    return jax.tree.map(lambda x: x[jnp.asarray(which)[i]], stacked)

  return of


def unstack(params: PyTree) -> PyTree:
  """The same params with `layers` as a list, for decoding."""
  count = jax.tree.leaves(params["layers"])[0].shape[0]
  layers = [
    jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(count)
  ]
  return {**params, "layers": layers}
