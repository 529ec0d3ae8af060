"""Declares the Linen modules that all parts of a block are made of."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bct_jax.mesh import axis_size


class RMSNorm(nn.Module):
  """Divides by the root mean square (Zhang and Sennrich 2019, 1910.07467).

    x / sqrt(mean(x^2) + eps) * scale

  Attributes:
    eps: added to the mean square.
    plus_one: whether the factor is 1 + scale, as in Gemma.
    float32: whether the product, too, is float32 before it is rounded to the
      dtype of x; always so with plus_one.
  """

  eps: float
  plus_one: bool = False
  float32: bool = False

  @nn.compact
  def __call__(self, x):  # [..., D]
    """Normalizes the last axis, in float32."""
    start = nn.initializers.zeros if self.plus_one else nn.initializers.ones
    scale = self.param("scale", start, (x.shape[-1],))
    full = normalize(x, self.eps)
    if self.plus_one or self.float32:
      factor = scale.astype(jnp.float32)
      factor = 1 + factor if self.plus_one else factor
      return (full * factor).astype(x.dtype)
    return full.astype(x.dtype) * scale.astype(x.dtype)


def normalize(x: jax.Array, eps: float) -> jax.Array:  # [..., D]
  """Divides by the root mean square of the last axis; returns float32."""
  full = x.astype(jnp.float32)
  full *= jax.lax.rsqrt(jnp.mean(full**2, axis=-1, keepdims=True) + eps)
  return full


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

  Where they hold a scale of each column, W is int8 times that, see `quantize`.

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
    if self.has_variable("params", "kernel_scale"):
      scale = self.get_variable("params", "kernel_scale")
      y = (y * scale).astype(self.dtype)
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


def quantize(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
  """Rounds x to int8 * scale, with one float32 scale along `axis`.

  Returns:
    The int8 values, of the shape of x, and the scales without `axis`.
  """
  full = x.astype(jnp.float32)
  scale = jnp.max(jnp.abs(full), axis=axis, keepdims=True) / 127
  values = jnp.round(full / jnp.where(scale > 0, scale, 1)).astype(jnp.int8)
  return values, jnp.squeeze(scale, axis)
