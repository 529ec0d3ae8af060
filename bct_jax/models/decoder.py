"""The decoder: RMSNorm, grouped-query attention, rotary positions, SwiGLU.

Linen declares the parameters of one block; the blocks are stacked on a leading
layer dimension and run by one `lax.scan`. For decoding, `unstack` gives the
layers as a list, which a plain loop runs without slicing a stacked array at
every token. Causality, padding and packing all follow from `positions` and
`segments`: a query sees the keys of its own segment that are not after it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.sharding import PartitionSpec as P

from bct_jax.mesh import ROWS, Rules, constrain
from bct_jax.models.config import ModelConfig
from bct_jax.types import PyTree


@struct.dataclass
class Cache:
  """Keys and values of past tokens; slots with segment 0 are never seen."""

  keys: Any  # per layer or stacked: [L, B, S, K, H]
  values: Any
  positions: jax.Array  # [B, S] int32
  segments: jax.Array  # [B, S] int32


def rope_angles(
  positions: jax.Array,  # [B, T]
  config: ModelConfig,
) -> tuple[jax.Array, jax.Array]:  # cos, sin [B, T, H/2] float32
  """Rotary angles (Su et al. 2021, arXiv 2104.09864), float32 throughout.

  bfloat16 angles are wrong by whole turns after a few hundred positions.
  """
  exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32)
  frequencies = config.rope_theta ** -(exponents / config.head_dim)
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rotate(
  x: jax.Array,  # [B, T, heads, H]
  angles: tuple[jax.Array, jax.Array],  # [B, T, H/2] each
) -> jax.Array:
  """Rotates pairs (i, i + H/2), the order Hugging Face weights are saved in."""
  cos, sin = (a[:, :, None, :] for a in angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  out = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return out.astype(x.dtype)


class RMSNorm(nn.Module):
  eps: float

  @nn.compact
  def __call__(self, x):  # [..., D]
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    full = x.astype(jnp.float32)
    full *= jax.lax.rsqrt(jnp.mean(full**2, axis=-1, keepdims=True) + self.eps)
    return full.astype(x.dtype) * scale.astype(x.dtype)


class Linear(nn.Module):
  """x W, on rows flattened to two dimensions.

  XLA's CPU backend takes twice as long for the weight gradient of a
  three-dimensional x inside a fused block; elsewhere it makes no difference.
  """

  width: int
  dtype: Any

  @nn.compact
  def __call__(self, x):  # [..., in] -> [..., width]
    shape = (x.shape[-1], self.width)
    kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
    rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
    y = rows @ kernel.astype(self.dtype)
    return y.reshape(*x.shape[:-1], self.width)


class Attention(nn.Module):
  config: ModelConfig
  dtype: Any

  @nn.compact
  def __call__(self, x, angles, mask, past):
    """x [B, T, D], mask [B, 1, T, S+T], past (keys, values) [B, S, K, H]."""
    c = self.config

    def project(name, heads):
      y = Linear(heads * c.head_dim, self.dtype, name=name)(x)
      return y.reshape(*x.shape[:2], heads, c.head_dim)

    q = rotate(project("q", c.num_heads), angles)
    k = rotate(project("k", c.num_kv_heads), angles)
    v = project("v", c.num_kv_heads)
    q = constrain(q, ROWS, None, "tensor", None)
    keys, values = k, v
    if past is not None:
      keys = jnp.concatenate([past[0], k], axis=1)  # [B, S+T, K, H]
      values = jnp.concatenate([past[1], v], axis=1)
    y = jax.nn.dot_product_attention(q, keys, values, mask=mask)
    y = y.reshape(*x.shape[:2], c.num_heads * c.head_dim)
    return Linear(c.width, self.dtype, name="o")(y), (k, v)


class Mlp(nn.Module):
  config: ModelConfig
  dtype: Any

  @nn.compact
  def __call__(self, x):  # [B, T, D]
    gate = Linear(self.config.mlp_width, self.dtype, name="gate")(x)
    up = Linear(self.config.mlp_width, self.dtype, name="up")(x)
    y = constrain(jax.nn.silu(gate) * up, ROWS, None, "tensor")
    return Linear(self.config.width, self.dtype, name="down")(y)


class Block(nn.Module):
  config: ModelConfig
  dtype: Any

  @nn.compact
  def __call__(self, x, angles, mask, past=None):
    c = self.config
    attn = Attention(c, self.dtype, name="attn")
    y, kv = attn(RMSNorm(c.norm_eps, name="norm1")(x), angles, mask, past)
    x = x + y
    x = x + Mlp(c, self.dtype, name="mlp")(RMSNorm(c.norm_eps, name="norm2")(x))
    return constrain(x, ROWS, None, None), kv


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

  def init(self, rng: jax.Array) -> PyTree:
    """Random float32 params; jax.eval_shape of it gives shapes alone."""
    c = self.config
    rngs = jax.random.split(rng, c.num_layers + 2)
    x = jnp.zeros((1, 1, c.width), self.dtype)
    zeros = jnp.zeros((1, 1), jnp.int32)
    mask = jnp.ones((1, 1, 1, 1), bool)

    def layer(key):
      return self.block.init(key, x, rope_angles(zeros, c), mask)["params"]

    normal = nn.initializers.normal(0.02)
    params = {
      "embed": normal(rngs[0], (c.vocab_size, c.width), jnp.float32),
      "layers": jax.vmap(layer)(rngs[2:]),
      "norm": {"scale": jnp.ones((c.width,), jnp.float32)},
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
    return jnp.einsum(
      form,
      hidden,
      table.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )

  def _forward(self, params, tokens, positions, segments, cache: Cache | None):
    """Hidden states [B, T, D] and the new keys and values of each layer."""
    key_positions, key_segments = positions, segments
    if cache is not None:
      key_positions = jnp.concatenate([cache.positions, positions], axis=1)
      key_segments = jnp.concatenate([cache.segments, segments], axis=1)
    mask = (
      (segments[:, :, None] == key_segments[:, None, :])
      & (key_segments[:, None, :] > 0)
      & (positions[:, :, None] >= key_positions[:, None, :])
    )[:, None]  # [B, 1, T, S+T]
    angles = rope_angles(positions, self.config)
    # The width is gathered before the look-up. Left to itself, XLA would give
    # every device all rows of the result to move from one layout to the other.
    table = constrain(params["embed"].astype(self.dtype), "tensor", None)
    x = table[tokens]
    x = constrain(x, ROWS, None, None)

    def run(x, layer, past):
      return self.block.apply({"params": layer}, x, angles, mask, past)

    layers = params["layers"]
    if isinstance(layers, (list, tuple)):
      kvs = []
      for i, layer in enumerate(layers):
        past = None if cache is None else (cache.keys[i], cache.values[i])
        x, kv = run(x, layer, past)
        kvs.append(kv)
      kvs = ([k for k, _ in kvs], [v for _, v in kvs])
    else:
      past = None if cache is None else (cache.keys, cache.values)
      body = lambda x, xs: run(x, *xs)  # noqa: E731
      if self.remat != "none":
        body = jax.checkpoint(body, policy=REMAT[self.remat], prevent_cse=False)
      x, kvs = jax.lax.scan(body, x, (layers, past))
    norm = RMSNorm(self.config.norm_eps)
    out: Any = norm.apply({"params": params["norm"]}, x)
    return out, kvs


def unstack(params: PyTree) -> PyTree:
  """The same params with `layers` as a list, for decoding."""
  count = jax.tree.leaves(params["layers"])[0].shape[0]
  layers = [
    jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(count)
  ]
  return {**params, "layers": layers}


def rules(config: ModelConfig, tensor: int, decode: bool = False) -> Rules:
  """Partition rules of the params; see mesh.shardings.

  Key and value heads are whole on every tensor device when there are fewer of
  them than devices.

  Args:
    config: the architecture.
    tensor: devices on the tensor axis.
    decode: for `unstack`ed params, spread over tensor only: parameters spread
      over fsdp would be gathered again for every token.

  Raises:
    ValueError: the heads do not divide over the tensor axis.
  """
  if config.num_heads % tensor or (
    config.num_kv_heads % tensor and tensor % config.num_kv_heads
  ):
    raise ValueError(
      f"mesh axis tensor = {tensor} does not fit {config.num_heads} query and "
      f"{config.num_kv_heads} key/value heads: it must divide the first, and "
      "divide the second or be a multiple of it"
    )
  kv = "tensor" if config.num_kv_heads % tensor == 0 else None
  fsdp = None if decode else "fsdp"
  lead = () if decode else (None,)
  out = [
    (r"^embed$", P("tensor", fsdp)),
    (r"^layers/.*(q|gate|up)/kernel$", P(*lead, fsdp, "tensor")),
    (r"^layers/.*(k|v)/kernel$", P(*lead, fsdp, kv)),
    (r"^layers/.*(o|down)/kernel$", P(*lead, "tensor", fsdp)),
    (r"norm[12]?/scale$", P()),
  ]
  if not config.tied:
    out.append((r"^head$", P(fsdp, "tensor")))
  return out
