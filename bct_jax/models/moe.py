"""Mixture of experts: every token goes to its experts, none is dropped."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from bct_jax.mesh import ROWS
from bct_jax.models.config import ModelConfig


class Experts(nn.Module):
  """Gated MLPs of which each token uses the few its router scores highest."""

  config: ModelConfig
  dtype: Any
  activation: Callable[[jax.Array], jax.Array]

  @nn.compact
  def __call__(self, x, arms=None):  # [B, T, D]
    del arms  # Experts have no adapters.
    c = self.config
    normal = nn.initializers.normal(0.02)
    count, inner = c.num_experts, c.mlp_width
    router = self.param("router", normal, (c.width, count))
    shapes = {
      "gate": (count, c.width, inner),
      "up": (count, c.width, inner),
      "down": (count, inner, c.width),
    }
    kernels = [
      self.param(name, normal, shape).astype(self.dtype)
      for name, shape in shapes.items()
    ]
    scores = (x @ router.astype(self.dtype)).astype(jnp.float32)
    weights, chosen = jax.lax.top_k(
      jax.nn.softmax(scores, axis=-1), c.experts_per_token
    )  # [B, T, experts per token]
    if c.renormalize:
      weights /= jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(self.dtype)

    mesh = jax.sharding.get_abstract_mesh()
    # The one row that init runs cannot be spread over devices.
    spread = not mesh.empty and not self.is_initializing()

    def local(x, weights, chosen, *kernels):
      if spread:
        # Said outright, so that their gradients are summed over tensor: the
        # gather below does not say it when it is differentiated.
        x = jax.lax.pcast(x, ("tensor",), to="varying")
        weights = jax.lax.pcast(weights, ("tensor",), to="varying")
      held = kernels[0].shape[0]
      first = 0 if held == count else jax.lax.axis_index("tensor") * held
      y = _mix(
        x.reshape(-1, x.shape[-1]),
        weights.reshape(-1, c.experts_per_token),
        chosen.reshape(-1, c.experts_per_token) - first,
        kernels,
        self.activation,
      ).reshape(x.shape)
      # Also over one device: shard_map must see that tensor devices agree.
      return jax.lax.psum(y, "tensor") if spread else y

    if not spread:
      return local(x, weights, chosen, *kernels)
    # Rows are whole on every device of the tensor axis, so each runs its own
    # experts on all of them, and one sum joins the results.
    rows, experts = P(ROWS), P("tensor")
    return jax.shard_map(
      local, in_specs=(rows,) * 3 + (experts,) * 3, out_specs=rows
    )(x, weights, chosen, *kernels)


def _mix(
  x: jax.Array,  # [N, D]
  weights: jax.Array,  # [N, k]
  chosen: jax.Array,  # [N, k], less than 0 or beyond: an expert held elsewhere
  kernels: tuple[jax.Array, ...],  # gate, up [E, D, F], down [E, F, D]
  activation: Callable[[jax.Array], jax.Array],
) -> jax.Array:  # [N, D]
  """The weighted sum of each token's experts, as far as they are held here."""
  gate, up, down = kernels
  held, per_token = gate.shape[0], chosen.shape[1]
  expert = chosen.reshape(-1)  # [N * k]
  expert = jnp.where((expert >= 0) & (expert < held), expert, held)
  order = jnp.argsort(expert, stable=True)
  sizes = jnp.bincount(expert, length=held + 1)[:held]
  token = order // per_token
  # What a ragged product gives for rows beyond the last group is not defined;
  # masked on both sides, neither values nor gradients pass through it.
  mine = (expert[order] < held)[:, None]
  rows = jnp.where(mine, x[token], 0)
  y = activation(jax.lax.ragged_dot(rows, gate, sizes))
  y *= jax.lax.ragged_dot(rows, up, sizes)
  y = jnp.where(mine, jax.lax.ragged_dot(y, down, sizes), 0)
  y *= weights.reshape(-1)[order][:, None]
  return jnp.zeros_like(x).at[token].add(y)
