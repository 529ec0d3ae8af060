"""Runs a mixture of experts (Shazeer et al. 2017, arXiv 1701.06538).

Every token goes to its experts and none is dropped, whatever the load of an
expert (Gale et al. 2022, arXiv 2211.15841). Experts have one of two forms:

* gated: (activation(x W_gate) * x W_up) W_down
* clamped, of gpt-oss (arXiv 2508.10925): W_gate and W_up are one kernel whose
  columns alternate, and all have biases. With g the former, cut above at
  `swiglu_limit`, and u the latter, cut on both sides:
  ((u + 1) * g * sigmoid(swiglu_alpha * g)) W_down + b

Where the params hold an adapter (lora.py), each product x W is x W + (x A) B.
On a mesh the weights of experts come to the tokens, or the tokens to the
experts (expert_exchange.py).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from bct_jax.mesh import AXES, ROWS, axis_size
from bct_jax.models.architecture import ModelConfig
from bct_jax.models.expert_exchange import Exchange, Layout, mark_varying


class Adapted(NamedTuple):
  """Holds a kernel of all experts with a low-rank adapter of each.

  Attributes:
    kernel: [E, in, out].
    a: [E, in, r]; of several arms one beside the other, [E, in, arms x r].
    b: [E, r, out], or [E, arms x r, out]. All three may be their partitions.
  """

  kernel: Any
  a: Any
  b: Any


class Experts(nn.Module):
  """Applies, to each token, the MLPs that its router scores highest.

  Attributes:
    config: the architecture.
    dtype: of the products.
    activation: of the gates.
    moved: what a mesh brings to the other, "weights" or "tokens".
  """

  config: ModelConfig
  dtype: Any
  activation: Callable[[jax.Array], jax.Array]
  moved: str = "weights"

  @nn.compact
  def __call__(self, x, arms=None):  # [B, T, D]
    """Maps each token by itself.

    Args:
      x: [B, T, D].
      arms: [B, T], whose adapter each token takes, or None.

    Returns:
      [B, T, D].
    """
    c = self.config
    normal = nn.initializers.normal(0.02)
    router = self.param("router", normal, (c.width, c.num_experts))
    shapes, run = self._form()
    kernels = [self._kernel(name, shape) for name, shape in shapes.items()]
    num_arms = max(count for _, count in kernels)
    kernels = [kernel for kernel, _ in kernels]
    weights, experts = self._route(x, router)
    arms = None if num_arms == 1 else arms
    apply = functools.partial(_apply, run=run, num_arms=num_arms)

    mesh = jax.sharding.get_abstract_mesh()
    # `init` runs a single row, which cannot be spread over devices.
    spread = not mesh.empty and not self.is_initializing()
    if spread and self.moved == "tokens":
      return self._send(x, weights, experts, arms, kernels, list(shapes), apply)

    def local(x, weights, experts, arms, *kernels):
      if spread:
        # Marked as differing between devices, so that their gradients are
        # summed over tensor. The gather in `_mix` does not mark them.
        x, weights = jax.lax.pcast((x, weights), ("tensor",), to="varying")
      local_count = _matrix(kernels[0]).shape[0]
      first = 0
      if local_count != c.num_experts:
        first = jax.lax.axis_index("tensor") * local_count
      y = _mix(
        x.reshape(-1, x.shape[-1]),
        weights.reshape(-1, c.experts_per_token),
        experts.reshape(-1, c.experts_per_token) - first,
        kernels,
        apply,
        None if arms is None else arms.reshape(-1),
      ).reshape(x.shape)
      # Also over one device: shard_map must see that the devices of tensor
      # agree.
      return jax.lax.psum(y, "tensor") if spread else y

    if not spread:
      # The exchange keeps nothing for the backward pass but its inputs.
      local = jax.checkpoint(local) if self.moved == "tokens" else local
      return local(x, weights, experts, arms, *kernels)
    # Rows are whole on every device of the tensor axis, so each runs its own
    # experts on all of them, and one sum joins the results.
    by_rows = _rows_spec(x)
    specs = (by_rows,) * 4 + (P("tensor"),) * len(kernels)
    return jax.shard_map(local, in_specs=specs, out_specs=by_rows)(
      x, weights, experts, arms, *kernels
    )

  def _send(self, x, weights, experts, arms, kernels, names, apply):
    """Sends tokens to their experts; see `__call__`.

    Args:
      x, weights, experts, arms, kernels: of all devices.
      names: of the kernels.
      apply: see `_apply`.

    Returns:
      [B, T, D].
    """
    c = self.config
    devices = axis_size("fsdp"), axis_size("tensor")
    layout = Layout.make(c.num_experts, c.mlp_width, *devices)
    specs = [_specs(layout, *x) for x in zip(names, kernels, strict=True)]
    by_rows = _rows_spec(x)
    shared = by_rows == P()
    axes = ("fsdp", "tensor") if shared else AXES
    mark = functools.partial(mark_varying, axes=axes)

    def local(x, weights, experts, arms, *kernels):
      shape = x.shape
      x, weights = mark(x, by_rows), mark(weights, by_rows)
      kernels = jax.tree.map(mark, list(kernels), specs)
      if not layout.whole and "down_bias" in names:
        # Devices of tensor have parts of an expert, and one of them its bias.
        bias, index = names.index("down_bias"), jax.lax.axis_index("tensor")
        kernels[bias] = jnp.where(index == 0, kernels[bias], 0)
      x, weights, experts, arms = jax.tree.map(
        lambda v: v.reshape(-1, *v.shape[2:]), (x, weights, experts, arms)
      )
      if shared:
        y = _mix(x, weights, experts - layout.first(), kernels, apply, arms)
        y = jax.lax.psum(y, "fsdp")
      else:
        y = Exchange(layout, apply)(x, weights, experts, arms, kernels)
      return jax.lax.psum(y, "tensor").reshape(shape)

    return jax.shard_map(
      local, in_specs=(*(by_rows,) * 4, *specs), out_specs=by_rows
    )(x, weights, experts, arms, *kernels)

  def _form(self) -> tuple[dict[str, tuple[int, ...]], Callable[..., Any]]:
    """Returns the shapes of all experts' params, and what runs them."""
    c = self.config
    count, inner = c.num_experts, c.mlp_width
    if c.expert_form == "clamped":
      shapes = {
        "gate_up": (count, c.width, 2 * inner),
        "gate_up_bias": (count, 2 * inner),
        "down": (count, inner, c.width),
        "down_bias": (count, c.width),
      }
      return shapes, functools.partial(
        _clamped, alpha=c.swiglu_alpha, limit=c.swiglu_limit
      )
    shapes = {
      "gate": (count, c.width, inner),
      "up": (count, c.width, inner),
      "down": (count, inner, c.width),
    }
    return shapes, functools.partial(_gated, activation=self.activation)

  def _route(
    self, x: jax.Array, router: jax.Array
  ) -> tuple[jax.Array, jax.Array]:  # [B, T, experts per token] each
    """Returns the weights and the numbers of each token's experts."""
    c = self.config
    scores = (x @ router.astype(self.dtype)).astype(jnp.float32)
    if c.expert_form == "clamped":
      normal = nn.initializers.normal(0.02)
      scores += self.param("router_bias", normal, (c.num_experts,))
    weights, experts = jax.lax.top_k(
      jax.nn.softmax(scores, axis=-1), c.experts_per_token
    )
    if c.renormalize:
      weights /= jnp.sum(weights, axis=-1, keepdims=True)
    return weights.astype(self.dtype), experts

  def _kernel(self, name: str, shape: tuple[int, ...]) -> tuple[Any, int]:
    """Returns a kernel, with its adapter if it has one, and how many arms."""
    if not (
      self.has_variable("params", name)
      and isinstance(found := self.get_variable("params", name), Mapping)
    ):
      normal = nn.initializers.normal(0.02)
      return self.param(name, normal, shape).astype(self.dtype), 1
    kernel, a, b = (
      found[part].astype(self.dtype) for part in ("kernel", "lora_a", "lora_b")
    )
    if a.ndim == 3:
      return Adapted(kernel, a, b), 1
    count = len(a)  # [arms, E, in, r] and [arms, E, r, out]
    a = jnp.moveaxis(a, 0, 2).reshape(*a.shape[1:3], -1)
    b = jnp.moveaxis(b, 0, 1).reshape(b.shape[1], -1, b.shape[-1])
    return Adapted(kernel, a, b), count


def _matrix(kernel: Any) -> jax.Array:
  """Returns a kernel without its adapter."""
  return kernel.kernel if isinstance(kernel, Adapted) else kernel


def _specs(layout: Layout, name: str, kernel: Any) -> Any:
  """Returns the partition of a kernel, and of its adapter if it has one."""
  if not isinstance(kernel, Adapted):
    return layout.spec(name)
  parts = ("", "/lora_a", "/lora_b")
  return Adapted(*(layout.spec(name + part) for part in parts))


def _rows_spec(x: jax.Array) -> P:
  """Returns how rows [B, T, D] are spread.

  A prefix that prompts share is one row, which each device runs.
  """
  shards = math.prod(axis_size(axis) for axis in ROWS)
  return P() if x.shape[0] % shards else P(ROWS)


def _mix(
  x: jax.Array,  # [N, D]
  weights: jax.Array,  # [N, k]
  experts: jax.Array,  # [N, k], an expert elsewhere is below 0 or >= E
  kernels: Sequence[Any],  # of the experts here, [E, ...] each
  apply: Callable[..., jax.Array],
  arms: jax.Array | None = None,  # [N]
) -> jax.Array:  # [N, D]
  """Sums the weighted outputs of each token's experts on this device.

  Args:
    x, weights, experts: tokens, and which experts they go to.
    kernels: of the experts, with or without adapters.
    apply: see `_apply`.
    arms: whose adapter each token takes; None is the only one.
  """
  # Tokens are sorted by expert, so that each expert's are neighbours and one
  # ragged product runs them all:
  #
  #   experts  [[1, 0], [1, 2]]           token 0 to experts 1 and 0, ...
  #   order    (0 to 0) (0 to 1) (1 to 1) (1 to 2)
  #   sizes    [1, 2, 1]                  rows of each expert
  count, per_token = _matrix(kernels[0]).shape[0], experts.shape[1]
  expert = experts.reshape(-1)  # [N * k]
  # Those of other devices come last, behind all groups.
  expert = jnp.where((expert >= 0) & (expert < count), expert, count)
  order = jnp.argsort(expert, stable=True)
  token = order // per_token
  arms = None if arms is None else arms[token]
  y = apply(x[token], expert[order], arms, kernels)
  y *= weights.reshape(-1)[order][:, None]
  return jnp.zeros_like(x).at[token].add(y)


def _apply(
  rows: jax.Array,  # [M, D], sorted by expert
  expert: jax.Array,  # [M], of each; one >= E is none
  arms: jax.Array | None,  # [M]
  kernels: Sequence[Any],
  *,
  run: Callable[..., jax.Array],
  num_arms: int,
) -> jax.Array:  # [M, D]
  """Runs rows through their experts; those of none give zeros.

  Args:
    rows, expert, kernels: see `_mix`.
    arms: whose adapter each row takes; None is the only one.
    run: one of the forms of experts, such as `_gated`.
    num_arms: that have adapters here.
  """
  count = _matrix(kernels[0]).shape[0]
  sizes = jnp.bincount(expert, length=count + 1)[:count]
  # A ragged product does not define its rows beyond the last group. They are
  # masked on both sides, so that neither values nor gradients pass them.
  is_local = (expert < count)[:, None]
  rows = jnp.where(is_local, rows, 0)
  of_row = jnp.minimum(expert, count - 1)

  def product(x: jax.Array, kernel: Any) -> jax.Array:
    """Runs each row through the matrix of its expert, and its adapter."""
    if not isinstance(kernel, Adapted):
      return jax.lax.ragged_dot(x, kernel, sizes)
    low = jax.lax.ragged_dot(x, kernel.a, sizes)
    if arms is not None:
      of_rank = jnp.arange(low.shape[1]) // (low.shape[1] // num_arms)
      low = jnp.where(arms[:, None] == of_rank, low, 0)
    y = jax.lax.ragged_dot(x, kernel.kernel, sizes)
    return y + jax.lax.ragged_dot(low, kernel.b, sizes)

  return jnp.where(is_local, run(rows, product, of_row, *kernels), 0)


def _gated(
  rows: jax.Array,  # [M, D], sorted by expert
  product: Callable[[jax.Array, Any], jax.Array],  # of rows and a kernel
  of_row: jax.Array,  # [M], the expert of each row
  gate: Any,  # [E, D, F]
  up: Any,  # [E, D, F]
  down: Any,  # [E, F, D]
  *,
  activation: Callable[[jax.Array], jax.Array],
) -> jax.Array:  # [M, D]
  """Runs gated MLPs, each on its rows."""
  del of_row  # for biases
  y = activation(product(rows, gate))
  y *= product(rows, up)
  return product(y, down)


def _clamped(
  rows: jax.Array,  # [M, D]
  product: Callable[[jax.Array, Any], jax.Array],
  of_row: jax.Array,  # [M]
  gate_up: Any,  # [E, D, 2 F]: gate, up, gate, ...
  gate_up_bias: jax.Array,  # [E, 2 F]
  down: Any,  # [E, F, D]
  down_bias: jax.Array,  # [E, D]
  *,
  alpha: float,
  limit: float,
) -> jax.Array:  # [M, D]
  """Runs clamped MLPs with biases, each on its rows."""
  both = product(rows, gate_up) + gate_up_bias[of_row]
  gate = jnp.minimum(both[:, ::2], limit)
  up = jnp.clip(both[:, 1::2], -limit, limit)
  y = (up + 1) * gate * jax.nn.sigmoid(alpha * gate)
  return product(y, down) + down_bias[of_row]
