"""Declares one block of the decoder, and so its params, as Linen modules.

There is one block for all model families. Which parts it has follows from the
flags of ModelConfig.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from bct_jax.mesh import ROWS, axis_size, constrain
from bct_jax.models.attention import (
  Segments,
  Slots,
  attend,
  attend_slots,
  attend_splash,
  put_in_slots,
)
from bct_jax.models.config import ModelConfig, Rope
from bct_jax.models.moe import Experts

ACTIVATIONS = {
  "silu": jax.nn.silu,
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def rope_angles(
  positions: jax.Array,  # [B, T]
  rope: Rope | None,
  head_dim: int,
) -> tuple[jax.Array, ...]:  # cos, sin [B, T, H/2] float32
  """Computes the rotary angles of positions (RoPE, arXiv 2104.09864).

  Position t turns pair i of a head by t * rope.frequencies[i] radians. Without
  a rope nothing turns. Both are multiplied by the rope's `attention_factor`,
  and with them queries and keys. All is float32: bfloat16 angles are wrong by
  whole turns after a few hundred positions. Where queries grow with their
  position, see Rope, a third array [B, T] says by how much.
  """
  frequencies = (
    np.zeros(head_dim // 2, np.float32)
    if rope is None
    else rope.frequencies(head_dim)
  )
  angles = positions[..., None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  if rope is None:
    return cos, sin
  if rope.attention_factor != 1:
    factor = np.float32(rope.attention_factor)
    cos, sin = cos * factor, sin * factor
  if not rope.query_growth:
    return cos, sin
  turns = (positions // rope.original_length).astype(jnp.float32)
  return cos, sin, 1 + rope.query_growth * jnp.log1p(turns)


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
  """Divides by the root mean square (Zhang and Sennrich 2019, 1910.07467).

    x / sqrt(mean(x^2) + eps) * scale

  Attributes:
    eps: added to the mean square.
    plus_one: whether the factor is 1 + scale, as in Gemma.
  """

  eps: float
  plus_one: bool = False

  @nn.compact
  def __call__(self, x):  # [..., D]
    """Normalizes the last axis, in float32."""
    start = nn.initializers.zeros if self.plus_one else nn.initializers.ones
    scale = self.param("scale", start, (x.shape[-1],))
    full = x.astype(jnp.float32)
    full *= jax.lax.rsqrt(jnp.mean(full**2, axis=-1, keepdims=True) + self.eps)
    if self.plus_one:  # Gemma also multiplies in float32.
      return (full * (1 + scale.astype(jnp.float32))).astype(x.dtype)
    return full.astype(x.dtype) * scale.astype(x.dtype)


@jax.custom_vjp
def _twice(x):
  """Returns x twice; the gradients of the two meet in one addition."""
  return x, x


_twice.defvjp(lambda x: ((x, x), None), lambda _, g: (g[0] + g[1],))


def fork(module: nn.Module, x: jax.Array) -> tuple[jax.Array, jax.Array | None]:
  """Splits the input of a module's layers: for weights, and for adapters.

  The gradients of each side add up apart, and then to one. Those of the weights
  are sums over tensor, which XLA joins to one sum if nothing comes between
  them. The second output is None where there are no adapters or no such sums.
  """
  layers = module.variables.get("params", {}).values()
  adapted = any(
    "lora_a" in layer for layer in layers if isinstance(layer, Mapping)
  )
  return _twice(x) if adapted and axis_size("tensor") > 1 else (x, None)


class Linear(nn.Module):
  """Computes x W + b, plus (x A) B where the params hold an adapter.

  With the adapters of several arms, A [arms, in, r] and B [arms, r, out], a
  token goes through all of them and takes the output of its arm: their ranks
  are small.

  Rows are flattened to two dimensions. XLA's CPU backend takes twice as long
  for the weight gradient of a three-dimensional x inside a fused block.
  Elsewhere it makes no difference.

  Attributes:
    width: of the output.
    dtype: of the products.
    bias: whether there is one.
  """

  width: int
  dtype: Any
  bias: bool = False

  @nn.compact
  def __call__(self, x, arms, forked=None):
    """Maps tokens.

    Args:
      x: [B, T, in].
      arms: [B, T], whose adapter each token takes, or None.
      forked: x as A reads it, see `fork`; None is x.

    Returns:
      [B, T, width].
    """
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
      if forked is not None:
        rows = forked.reshape(rows.shape).astype(self.dtype)
      if a.ndim == 3:
        in_arm = arms.reshape(-1, 1, 1) == jnp.arange(len(a))[:, None]
        # Not multiplied by 0: the outputs of a diverged arm may be infinite.
        low = jnp.where(in_arm, jnp.einsum("md,adr->mar", rows, a), 0)
        y += jnp.einsum("mar,arf->mf", low, b)
      else:
        y += (rows @ a) @ b
    return y.reshape(*x.shape[:-1], self.width)


class Attention(nn.Module):
  """Projects to queries, keys and values, attends, and projects back."""

  config: ModelConfig
  dtype: Any
  attention: str

  @nn.compact
  def __call__(self, x, angles, mask, past, at, arms):
    """Mixes the tokens of each row with each other and with the past.

    Args:
      x: [B, T, D].
      angles: see `rope_angles`.
      mask: [B, 1, T, keys], or Segments for splash attention.
      past: None, a Prefix, or Slots when T is 1.
      at: [B], the slot to which each token is written, with Slots.
      arms: [B, T] or None, see Linear.

    Returns:
      [B, T, D], and the new keys and values [B, T, K, H], or the new Slots.
    """
    c = self.config
    x, forked = fork(self, x)

    def project(name, heads):
      linear = Linear(heads * c.head_dim, self.dtype, c.qkv_bias, name=name)
      y = linear(x, arms, forked)
      if c.qk_norm == "all" and name != "v":
        y = RMSNorm(c.norm_eps, c.norm_plus_one, name=f"{name}_norm")(y)
      # Without it XLA makes the product give heads, from a kernel that it
      # reshapes, and gathers that apart from the kernel of the gradient.
      y = constrain(y, ROWS, None, P.UNCONSTRAINED)
      y = y.reshape(*x.shape[:2], heads, c.head_dim)
      if c.qk_norm == "head" and name != "v":
        y = RMSNorm(c.norm_eps, c.norm_plus_one, name=f"{name}_norm")(y)
      return y

    sinks = None
    if c.sinks:
      sinks = self.param("sinks", nn.initializers.zeros, (c.num_heads,))
    growth, angles = angles[2:], angles[:2]
    q = rotate(project("q", c.num_heads), angles)
    if growth:
      q *= growth[0][..., None, None].astype(q.dtype)
    keys, v = project("k", c.num_kv_heads), project("v", c.num_kv_heads)
    k = rotate(keys, angles)
    q = constrain(q, ROWS, None, "tensor", None)
    kv: Any = (k, v)
    copies = axis_size("tensor") // c.num_kv_heads
    if past is None and copies > 1:
      # Devices share a head, and each takes a copy of it. They do so before
      # the head is rotated: later they would have to exchange parts of it.
      k, v = (
        constrain(jnp.repeat(y, copies, axis=2), ROWS, None, "tensor", None)
        for y in (keys, v)
      )
      k = rotate(k, angles)
    if isinstance(past, Slots):
      kv = put_in_slots(past, k, v, at)
      y = attend_slots(q, kv, mask, c.score_scale, c.attn_softcap, sinks)
    elif isinstance(mask, Segments):
      y = attend_splash(q, k, v, mask, c.score_scale, c.attn_softcap)
    else:
      if past is not None:
        prefix = jax.tree.map(
          lambda p: jnp.broadcast_to(p, (x.shape[0], *p.shape[1:])), past
        )
        k = jnp.concatenate([prefix.keys, k], axis=1)  # [B, S+T, K, H]
        v = jnp.concatenate([prefix.values, v], axis=1)
      y = attend(
        *(q, k, v, mask, c.score_scale, c.attn_softcap),
        *(self.attention, sinks),
      )
    y = y.reshape(*x.shape[:2], c.num_heads * c.head_dim)
    y = constrain(y, ROWS, None, "tensor")  # as in `project`
    out = Linear(c.width, self.dtype, c.out_bias, name="o")
    return out(y, arms), kv


class Mlp(nn.Module):
  """Applies a gated linear unit (Shazeer 2020, arXiv 2002.05202).

  (activation(x W_gate) * x W_up) W_down
  """

  config: ModelConfig
  dtype: Any

  @nn.compact
  def __call__(self, x, arms):  # [B, T, D], [B, T] or None -> [B, T, D]
    """Maps each token by itself."""
    c = self.config

    def linear(x, width, name, forked=None):
      layer = Linear(width, self.dtype, c.mlp_bias, name=name)
      return layer(x, arms, forked)

    x, forked = fork(self, x)
    gate = ACTIVATIONS[c.activation](linear(x, c.mlp_width, "gate", forked))
    y = gate * linear(x, c.mlp_width, "up", forked)
    return linear(constrain(y, ROWS, None, "tensor"), c.width, "down")


class Block(nn.Module):
  """Runs attention and an MLP, each added to the residual stream.

    x += post_norm(attention(pre_norm(x)))
    x += post_norm(mlp(pre_norm(x)))

  `config.norms` says which of the norms there are.
  """

  config: ModelConfig
  dtype: Any
  attention: str = "xla"

  @nn.compact
  def __call__(self, x, angles, mask, past=None, at=None, arms=None):
    """Runs the block; see Attention for arguments and outputs."""
    c = self.config

    def norm(y, where, name):
      if c.norms not in (where, "both"):
        return y
      return RMSNorm(c.norm_eps, c.norm_plus_one, name=name)(y)

    attn = Attention(c, self.dtype, self.attention, name="attn")
    if c.num_experts:
      mlp = Experts(c, self.dtype, ACTIVATIONS[c.activation], name="mlp")
    else:
      mlp = Mlp(c, self.dtype, name="mlp")
    y, kv = attn(norm(x, "pre", "attn_norm"), angles, mask, past, at, arms)
    x = x + norm(y, "post", "attn_post_norm")
    y = mlp(norm(x, "pre", "mlp_norm"), arms)
    x = x + norm(y, "post", "mlp_post_norm")
    return constrain(x, ROWS, None, None), kv
