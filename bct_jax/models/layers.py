"""One block of the decoder as Linen modules: what is declared in params.

Which parts a block has follows from the flags of ModelConfig; there is one
block for all families.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bct_jax.mesh import ROWS, constrain
from bct_jax.models.config import ModelConfig, Rope
from bct_jax.models.moe import Experts

ACTIVATIONS = {
  "silu": jax.nn.silu,
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


class Prefix(NamedTuple):
  """Keys and values that rows begin with, [B or 1, S, K, H] each."""

  keys: jax.Array
  values: jax.Array


class Slots(NamedTuple):
  """Past keys and values by row, as attention over one new token reads them.

  A product over the head width wants it next to the positions, one over the
  positions wants it last; other orders are copied at every token. In int8 each
  key and each value has a scale, the largest of its H magnitudes over 127.
  """

  keys: jax.Array  # [B, K, H, S]
  values: jax.Array  # [B, K, S, H]
  key_scale: jax.Array | None = None  # [B, K, S] float32, with int8
  value_scale: jax.Array | None = None  # [B, K, S] float32, with int8


# Where the positions are in each of these arrays.
POSITIONS = (3, 2, 2, 2)


def as_slots(k: jax.Array, v: jax.Array, dtype: Any) -> Slots:
  """Keys and values [B, T, K, H] in the layout and dtype of Slots."""
  k, v = k.transpose(0, 2, 3, 1), v.transpose(0, 2, 1, 3)
  if dtype != jnp.int8:
    return Slots(k.astype(dtype), v.astype(dtype))
  k, key_scale = _quantize(k, 2)
  v, value_scale = _quantize(v, 3)
  return Slots(k, v, key_scale, value_scale)


def _quantize(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
  """x is nearly int8 * scale, with one scale along `axis`."""
  full = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(full), axis=axis, keepdims=True) / 127
  whole = jnp.round(full / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
  return whole, jnp.squeeze(scale, axis)


def rope_angles(
  positions: jax.Array,  # [B, T]
  rope: Rope | None,
  head_dim: int,
) -> tuple[jax.Array, jax.Array]:  # cos, sin [B, T, H/2] float32
  """Rotary angles, float32 throughout; no turn at all without a rope.

  bfloat16 angles are wrong by whole turns after a few hundred positions.
  """
  frequencies = (
    np.zeros(head_dim // 2, np.float32)
    if rope is None
    else rope.frequencies(head_dim)
  )
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
  """Root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467)."""

  eps: float
  plus_one: bool = False

  @nn.compact
  def __call__(self, x):  # [..., D]
    start = nn.initializers.zeros if self.plus_one else nn.initializers.ones
    scale = self.param("scale", start, (x.shape[-1],))
    full = x.astype(jnp.float32)
    full *= jax.lax.rsqrt(jnp.mean(full**2, axis=-1, keepdims=True) + self.eps)
    if self.plus_one:  # Gemma also multiplies in float32.
      return (full * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    return full.astype(x.dtype) * scale.astype(x.dtype)


class Linear(nn.Module):
  """x W + b, and + (x A) B where the params hold a low-rank adapter.

  With adapters of several arms, A [arms, in, r] and B [arms, r, out], a token
  goes through all of them and keeps that of its arm: their ranks are small.

  Rows are flattened to two dimensions: XLA's CPU backend takes twice as long
  for the weight gradient of a three-dimensional x inside a fused block;
  elsewhere it makes no difference.
  """

  width: int
  dtype: Any
  bias: bool = False

  @nn.compact
  def __call__(self, x, arms):  # [B, T, in], [B, T] or None -> [B, T, width]
    shape = (x.shape[-1], self.width)
    kernel = self.param("kernel", nn.initializers.normal(0.02), shape)
    rows = x.reshape(-1, x.shape[-1]).astype(self.dtype)
    y = rows @ kernel.astype(self.dtype)
    if self.bias:
      bias = self.param("bias", nn.initializers.zeros, (self.width,))
      y += bias.astype(self.dtype)
    if self.has_variable("params", "lora_a"):
      a = self.get_variable("params", "lora_a").astype(self.dtype)
      b = self.get_variable("params", "lora_b").astype(self.dtype)
      if a.ndim == 3:
        own = jax.nn.one_hot(arms.reshape(-1), len(a), dtype=self.dtype)
        low = jnp.einsum("md,adr->mar", rows, a) * own[:, :, None]
        y += jnp.einsum("mar,arf->mf", low, b)
      else:
        y += (rows @ a) @ b
    return y.reshape(*x.shape[:-1], self.width)


def attend(
  q: jax.Array,  # [B, T, N, H]
  keys: jax.Array,  # [B, S, K, H]
  values: jax.Array,  # [B, S, K, H]
  mask: jax.Array,  # [B, 1, T, S]
  scale: float,
  softcap: float | None,
  grouped: bool,
) -> jax.Array:  # [B, T, N, H]
  """Grouped-query attention, see Decoder.grouped."""
  if not grouped and softcap is None:
    return jax.nn.dot_product_attention(q, keys, values, mask=mask, scale=scale)
  rows, length, heads, width = q.shape
  kv_heads = keys.shape[2]
  q = q.reshape(rows, length, kv_heads, -1, width).transpose(0, 2, 3, 1, 4)
  keys, values = keys.transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)
  y = _attend(
    q.reshape(rows, kv_heads, -1, width),
    keys,
    values,
    jnp.tile(mask, (1, 1, heads // kv_heads, 1)),
    scale,
    softcap,
  )
  y = y.reshape(rows, kv_heads, -1, length, width)
  return y.transpose(0, 3, 1, 2, 4).reshape(rows, length, heads, width)


def attend_slots(
  q: jax.Array,  # [B, 1, N, H]
  slots: Slots,
  mask: jax.Array,  # [B, 1, 1, S]
  scale: float,
  softcap: float | None,
) -> jax.Array:  # [B, 1, N, H]
  """Grouped-query attention of one token per row."""
  rows, _, heads, width = q.shape
  q = q.reshape(rows, slots.keys.shape[1], -1, width)
  y = _attend(
    q,
    slots.keys.astype(q.dtype),
    slots.values.astype(q.dtype),
    mask,
    scale,
    softcap,
    slots.key_scale,
    slots.value_scale,
  )
  return y.reshape(rows, 1, heads, width)


def _attend(
  q: jax.Array,  # [B, K, M, H]
  keys: jax.Array,  # [B, K, H, S]
  values: jax.Array,  # [B, K, S, H]
  mask: jax.Array,  # [B, 1, M or 1, S]
  scale: float,
  softcap: float | None,
  key_scale: jax.Array | None = None,  # [B, K, S]
  value_scale: jax.Array | None = None,  # [B, K, S]
) -> jax.Array:  # [B, K, M, H]
  """Attention with softmax in float32, divided by its sum at the end.

  `softcap` bounds the scores (Gemma 2): cap * tanh(scores / cap).
  """
  scores = scale * jnp.einsum(
    "bkmh,bkhs->bkms", q, keys, preferred_element_type=jnp.float32
  )
  if key_scale is not None:
    scores *= key_scale[:, :, None]
  if softcap is not None:
    scores = softcap * jnp.tanh(scores / softcap)
  scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
  highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
  weights = jnp.exp(scores - highest)
  total = jnp.sum(weights, axis=-1, keepdims=True)
  if value_scale is not None:
    weights *= value_scale[:, :, None]
  y = jnp.einsum(
    "bkms,bksh->bkmh",
    weights.astype(values.dtype),
    values,
    preferred_element_type=jnp.float32,
  )
  return (y / total).astype(values.dtype)


def put_in_slots(
  slots: Slots,
  k: jax.Array,  # [B, 1, K, H]
  v: jax.Array,  # [B, 1, K, H]
  at: jax.Array,  # [B]
) -> Slots:
  """The slots with one more position of every row written, each at its own."""

  def put(old, new, axis) -> Any:
    def one(old, new, at):  # of one row, so without the first axis
      starts = [at if i == axis else 0 for i in range(1, new.ndim + 1)]
      return jax.lax.dynamic_update_slice(old, new, starts)

    return None if old is None else jax.vmap(one)(old, new, at)

  new = as_slots(k, v, slots.keys.dtype)
  return Slots(*map(put, slots, new, POSITIONS))


class Attention(nn.Module):
  config: ModelConfig
  dtype: Any
  grouped: bool

  @nn.compact
  def __call__(self, x, angles, mask, past, at, arms):
    """Mixes the tokens of each row, and those of the past.

    Args:
      x: [B, T, D].
      angles: see `rope_angles`.
      mask: [B, 1, T, keys].
      past: None, a Prefix, or Slots when T is 1.
      at: [B], the slot of the token, with Slots.
      arms: [B, T] or None, see Linear.

    Returns:
      [B, T, D], and the new keys and values [B, T, K, H], or the new Slots.
    """
    c = self.config

    def project(name, heads):
      linear = Linear(heads * c.head_dim, self.dtype, c.qkv_bias, name=name)
      y = linear(x, arms)
      if c.qk_norm == "all" and name != "v":
        y = RMSNorm(c.norm_eps, c.norm_plus_one, name=f"{name}_norm")(y)
      y = y.reshape(*x.shape[:2], heads, c.head_dim)
      if c.qk_norm == "head" and name != "v":
        y = RMSNorm(c.norm_eps, c.norm_plus_one, name=f"{name}_norm")(y)
      return y

    q = rotate(project("q", c.num_heads), angles)
    k = rotate(project("k", c.num_kv_heads), angles)
    v = project("v", c.num_kv_heads)
    q = constrain(q, ROWS, None, "tensor", None)
    kv: Any = (k, v)
    if isinstance(past, Slots):
      kv = put_in_slots(past, k, v, at)
      y = attend_slots(q, kv, mask, c.score_scale, c.attn_softcap)
    else:
      if past is not None:
        prefix = jax.tree.map(
          lambda p: jnp.broadcast_to(p, (x.shape[0], *p.shape[1:])), past
        )
        k = jnp.concatenate([prefix.keys, k], axis=1)  # [B, S+T, K, H]
        v = jnp.concatenate([prefix.values, v], axis=1)
      y = attend(q, k, v, mask, c.score_scale, c.attn_softcap, self.grouped)
    y = y.reshape(*x.shape[:2], c.num_heads * c.head_dim)
    out = Linear(c.width, self.dtype, c.out_bias, name="o")
    return out(y, arms), kv


class Mlp(nn.Module):
  """Gated linear unit (Shazeer 2020, arXiv 2002.05202)."""

  config: ModelConfig
  dtype: Any

  @nn.compact
  def __call__(self, x, arms):  # [B, T, D], [B, T] or None -> [B, T, D]
    c = self.config

    def linear(x, width, name):
      return Linear(width, self.dtype, c.mlp_bias, name=name)(x, arms)

    gate = ACTIVATIONS[c.activation](linear(x, c.mlp_width, "gate"))
    y = gate * linear(x, c.mlp_width, "up")
    return linear(constrain(y, ROWS, None, "tensor"), c.width, "down")


class Block(nn.Module):
  config: ModelConfig
  dtype: Any
  grouped: bool = False

  @nn.compact
  def __call__(self, x, angles, mask, past=None, at=None, arms=None):
    c = self.config

    def norm(y, where, name):
      if c.norms not in (where, "both"):
        return y
      return RMSNorm(c.norm_eps, c.norm_plus_one, name=name)(y)

    attn = Attention(c, self.dtype, self.grouped, name="attn")
    if c.num_experts:
      mlp = Experts(c, self.dtype, ACTIVATIONS[c.activation], name="mlp")
    else:
      mlp = Mlp(c, self.dtype, name="mlp")
    y, kv = attn(norm(x, "pre", "attn_norm"), angles, mask, past, at, arms)
    x = x + norm(y, "post", "attn_post_norm")
    y = mlp(norm(x, "pre", "mlp_norm"), arms)
    x = x + norm(y, "post", "mlp_post_norm")
    return constrain(x, ROWS, None, None), kv
