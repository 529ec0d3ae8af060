"""Declares one block of the decoder, and so its params, as Linen modules.

There is one block for all model families. Which parts it has follows from the
flags of ModelConfig.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from bct_jax.mesh import ROWS, axis_size, constrain
from bct_jax.models.architecture import ModelConfig
from bct_jax.models.attention import (
  Prefix,
  Slots,
  attend,
  attend_slots,
  put_in_slots,
)
from bct_jax.models.deltanet import mix_rows, mix_token
from bct_jax.models.modules import Linear, RMSNorm, fork, normalize
from bct_jax.models.moe import Experts
from bct_jax.models.rope import Rope
from bct_jax.models.splash import Segments, attend_splash

ACTIVATIONS = {
  "silu": jax.nn.silu,
  "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
}


def rope_angles(
  positions: jax.Array,  # [B, T]
  rope: Rope | None,
  head_dim: int,
) -> tuple[jax.Array, ...]:  # cos, sin [B, T, R/2] float32
  """Computes the rotary angles of positions (RoPE, arXiv 2104.09864).

  Position t turns pair i of a head by t * rope.frequencies[i] radians. R are
  the dimensions that turn, H or some of them; without a rope nothing does. Both
  are multiplied by the rope's `attention_factor`, and with them queries and
  keys. All is float32: bfloat16 angles are wrong by whole turns after a few
  hundred positions. Where queries grow with their position, see Rope, a third
  array [B, T] says by how much.
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
  angles: tuple[jax.Array, jax.Array],  # [B, T, R/2] each
) -> jax.Array:
  """Rotates pairs (i, i + R/2), the order Hugging Face weights are saved in.

  R is H, or less where only the first dimensions of a head turn.
  """
  cos, sin = (a[:, :, None, :] for a in angles)
  turning = 2 * cos.shape[-1]
  if turning < x.shape[-1]:
    rest = x[..., turning:]
    return jnp.concatenate([rotate(x[..., :turning], angles), rest], axis=-1)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  out = jnp.concatenate(
    [first * cos - second * sin, second * cos + first * sin], axis=-1
  )
  return out.astype(x.dtype)


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
    sinks = None
    if c.sinks:
      sinks = self.param("sinks", nn.initializers.zeros, (c.num_heads,))
    growth, angles = angles[2:], angles[:2]
    q, keys, v, gate = self._project(x, arms)
    q = rotate(q, angles)
    if growth:
      q *= growth[0][..., None, None].astype(q.dtype)
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
    scores = c.score_scale, c.attn_softcap
    if isinstance(past, Slots):
      kv = put_in_slots(past, k, v, at)
      y = attend_slots(q, kv, mask, *scores, sinks)
    elif isinstance(mask, Segments):
      y = attend_splash(q, k, v, mask, *scores)
    else:
      if past is not None:
        k, v = _put_behind(past, k, v)
      y = attend(q, k, v, mask, *scores, self.attention, sinks)
    if gate:
      y *= jax.nn.sigmoid(gate[0])
    y = y.reshape(*x.shape[:2], c.num_heads * c.head_dim)
    y = constrain(y, ROWS, None, "tensor")  # as in `_split_heads`
    out = Linear(c.width, self.dtype, c.out_bias, name="o")
    return out(y, arms), kv

  def _project(self, x, arms):
    """Projects tokens to heads, and normalizes these.

    Args:
      x: [B, T, D].
      arms: [B, T] or None, see Linear.

    Returns:
      Queries [B, T, N, H], keys and values [B, T, K, H], and a list with the
      gates [B, T, N, H] if the model has them.
    """
    c = self.config
    x, forked = fork(self, x)

    def project(name, heads, parts=1):
      width = heads * parts * c.head_dim
      linear = Linear(width, self.dtype, c.qkv_bias, name=name)
      y = linear(x, arms, forked)
      y = y if name == "v" else self._norm(y, "all", name)
      return self._split_heads(y, heads, parts)

    q, *gate = project("q", c.num_heads, 1 + c.attn_gate)
    (keys,) = project("k", c.num_kv_heads)
    (v,) = (keys,) if c.key_is_value else project("v", c.num_kv_heads)
    q, keys = self._norm(q, "head", "q"), self._norm(keys, "head", "k")
    if c.value_norm:
      v = normalize(v, c.norm_eps).astype(v.dtype)
    return q, keys, v, gate

  def _norm(self, y, of, name):
    """Normalizes queries or keys, if it is of this that the model does.

    Args:
      y: [..., T, heads * H], or [..., T, heads, H].
      of: "all" or "head".
      name: q or k.
    """
    c = self.config
    if c.qk_norm != of:
      return y
    flags = (c.norm_eps, c.norm_plus_one, c.norm_float32)
    return RMSNorm(*flags, name=f"{name}_norm")(y)

  def _split_heads(self, y, heads, parts):
    """Splits outputs of a projection into heads.

    Args:
      y: [B, T, heads * parts * H].
      heads: how many there are.
      parts: 2 if each has a gate behind it.

    Returns:
      [B, T, heads, H] for each part.
    """
    # Without it XLA makes the product give heads, from a kernel that it
    # reshapes, and gathers that apart from the kernel of the gradient.
    y = constrain(y, ROWS, None, P.UNCONSTRAINED)
    y = y.reshape(*y.shape[:2], heads, parts * self.config.head_dim)
    return jnp.split(y, parts, axis=-1) if parts > 1 else (y,)


def _put_behind(
  prefix: Prefix, k: jax.Array, v: jax.Array
) -> tuple[jax.Array, jax.Array]:  # [B, S+T, K, H] each
  """Puts keys and values [B, T, K, H] of rows behind those they begin with."""
  keys, values = (jnp.broadcast_to(p, (len(k), *p.shape[1:])) for p in prefix)
  return (
    jnp.concatenate([keys, k], axis=1),
    jnp.concatenate([values, v], axis=1),
  )


class GatedDeltaNet(nn.Module):
  """Mixes the tokens of rows by linear attention, see deltanet.py.

    out(norm(y) * silu(z)),  with decay -exp(a_log) softplus(a + dt_bias) and
    rate sigmoid(b)

  Projections are those of the checkpoints: q, k and v are one, or, `fused`, so
  are q, k, v and z of each key head.
  """

  config: ModelConfig
  dtype: Any

  @nn.compact
  def __call__(self, x, segments, past, ends, arms):
    """Mixes the tokens of each row with each other and with the past.

    Args:
      x: [B, T, D].
      segments: [B, T]; None is one more token of each row, where T is 1.
      past: the State of each row, or None.
      ends: [A], places in B x T after which to return the state, or None.
      arms: [B, T] or None, see Linear.

    Returns:
      [B, T, D], and the State or None.
    """
    net = self.config.delta
    assert net is not None
    x, forked = fork(self, x)
    k, r = net.key_heads, net.value_heads // net.key_heads
    e, f = net.key_dim, net.value_dim

    def project(name, width):
      y = Linear(width, self.dtype, name=name)(x, arms, forked)
      return constrain(y, ROWS, None, P.UNCONSTRAINED)  # as in Attention

    def by_head(y, *shape):
      return constrain(y.reshape(*x.shape[:2], *shape), ROWS, None, "tensor")

    if net.fused:
      y = by_head(project("qkvz", 2 * k * (e + r * f)), k, -1)
      *inputs, z = jnp.split(y, [e, 2 * e, 2 * e + r * f], axis=-1)
      b, a = jnp.split(by_head(project("ba", 2 * k * r), k, -1), 2, axis=-1)
    else:
      y = project("qkv", k * (2 * e + r * f))
      inputs = jnp.split(y, [k * e, 2 * k * e], axis=-1)
      z = project("z", k * r * f)
      b, a = (by_head(project(name, k * r), k, r) for name in "ba")
    shapes = (k, e), (k, e), (k, r, f)
    inputs = [by_head(y, *s) for y, s in zip(inputs, shapes, strict=True)]

    normal = nn.initializers.normal(0.02)
    conv = self.param("conv", normal, (k * (2 * e + r * f), 1, net.window))
    conv = jnp.split(conv[:, 0], [k * e, 2 * k * e])
    conv = [y.reshape(*s, -1) for y, s in zip(conv, shapes, strict=True)]
    a_log = self.param("a_log", _init_a_log, (k * r,)).astype(jnp.float32)
    dt_bias = self.param("dt_bias", nn.initializers.ones, (k * r,))
    a = a.astype(jnp.float32) + dt_bias.astype(jnp.float32).reshape(k, r)
    decay = -jnp.exp(a_log).reshape(k, r) * jax.nn.softplus(a)
    rate = jax.nn.sigmoid(b.astype(jnp.float32))
    if segments is None:
      newest = ([y[:, 0] for y in inputs], conv, decay[:, 0], rate[:, 0])
      y, state = mix_token(*newest, past)
    else:
      y, state = mix_rows(inputs, conv, decay, rate, segments, past, ends)
    y = RMSNorm(self.config.norm_eps, name="norm")(y.astype(self.dtype))
    gate = jax.nn.silu(z.astype(jnp.float32)).reshape(*x.shape[:2], k, r, f)
    y = (y.reshape(gate.shape) * gate).astype(self.dtype)
    y = constrain(y.reshape(*x.shape[:2], -1), ROWS, None, "tensor")
    return Linear(self.config.width, self.dtype, name="out")(y, arms), state


def _init_a_log(key, shape):
  """Draws logs of decays, as the published code begins."""
  return jnp.log(jax.random.uniform(key, shape, minval=0.01, maxval=16.0))


class Mlp(nn.Module):
  """Applies a gated linear unit (Shazeer 2020, arXiv 2002.05202).

  (activation(x W_gate) * x W_up) W_down

  One that is `shared`, beside the experts of a mixture, is multiplied by
  sigmoid(x W_weight), a number for each token (Qwen2, arXiv 2407.10671).
  """

  config: ModelConfig
  dtype: Any
  shared: bool = False

  @nn.compact
  def __call__(self, x, arms):  # [B, T, D], [B, T] or None -> [B, T, D]
    """Maps each token by itself."""
    c = self.config
    width = c.shared_width if self.shared else c.mlp_width

    def linear(x, width, name, forked=None):
      layer = Linear(width, self.dtype, c.mlp_bias, name=name)
      return layer(x, arms, forked)

    x, forked = fork(self, x)
    gate = ACTIVATIONS[c.activation](linear(x, width, "gate", forked))
    y = gate * linear(x, width, "up", forked)
    y = linear(constrain(y, ROWS, None, "tensor"), c.width, "down")
    if self.shared:
      y *= jax.nn.sigmoid(linear(x, 1, "weight", forked))
    return y


class Block(nn.Module):
  """Runs attention and an MLP, each added to the residual stream.

    x += post_norm(attention(pre_norm(x)))
    x += post_norm(mlp(pre_norm(x)))

  `config.norms` says which of the norms there are, and `mixer`, one of MIXERS,
  what is in the place of attention. `experts` are those of Decoder.
  """

  config: ModelConfig
  dtype: Any
  attention: str = "xla"
  mixer: str = "attn"
  experts: str = "weights"

  @nn.compact
  def __call__(self, x, angles, mask, past=None, at=None, arms=None):
    """Runs the block; see Attention for arguments and outputs.

    A linear block has no use for angles. Its mask are Segments, or None for one
    more token; `at` are the `ends` of GatedDeltaNet.
    """
    c = self.config

    def norm(y, where, name):
      if c.norms not in (where, "both"):
        return y
      of = (c.norm_eps, c.norm_plus_one, c.norm_float32)
      return RMSNorm(*of, name=name)(y)

    y = norm(x, "pre", "attn_norm")
    if self.mixer == "deltanet":
      segments = None if mask is None else mask.ids
      delta = GatedDeltaNet(c, self.dtype, name=self.mixer)
      y, kv = delta(y, segments, past, at, arms)
    else:
      heads = c.with_heads(self.mixer)
      attn = Attention(heads, self.dtype, self.attention, name=self.mixer)
      y, kv = attn(y, angles, mask, past, at, arms)
    x = x + norm(y, "post", "attn_post_norm")
    if c.num_experts:
      act = ACTIVATIONS[c.activation]
      mlp = Experts(c, self.dtype, act, self.experts, name="mlp")
    else:
      mlp = Mlp(c, self.dtype, name="mlp")
    inner = norm(x, "pre", "mlp_norm")
    y = mlp(inner, arms)
    if c.shared_width:
      y += Mlp(c, self.dtype, shared=True, name="shared")(inner, arms)
    x = x + norm(y, "post", "mlp_post_norm")
    if c.layer_scalar:
      scalar = self.param("scalar", nn.initializers.ones, (1,))
      x *= jax.lax.stop_gradient(scalar).astype(x.dtype)
    return constrain(x, ROWS, None, None), kv
