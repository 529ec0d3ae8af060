"""Sends tokens to the devices of their experts and back, none dropped.

With `mesh.experts = "tokens"` an expert's weights stay on one device of `fsdp`
and `tensor`, and tokens travel over `fsdp`. Each device of `tensor` sends those
that go to its own column of experts:

    tensor        0             1
    fsdp 0    experts 0 1   experts 4 5      a token on fsdp 0 with experts
    fsdp 1    experts 2 3   experts 6 7      1, 2, 7: column 0 keeps one row and
                                             sends one, column 1 sends one

Where there are fewer experts than devices, `fsdp` divides the experts and
`tensor` the width inside of each.

Rows go in rounds of equal all-to-alls, each with room for the mean load of a
pair of devices. There are as many rounds as the fullest pair needs. So buffers
do not grow with the worst load, and all devices run the same collectives.
Devices first tell each other how many rows of which expert come.

Megatron-Core, too, makes the groups of experts out of data-parallel devices
(arXiv 2504.14960). It sends rows in one step into buffers of the size they
need, which a compiled program cannot have. MaxText's are of the worst load, and
its ragged all-to-all does not run on CPU.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from bct_jax.mesh import AXES, ROWS
from bct_jax.types import PyTree

# Of rows that a round has room for, at least: products of fewer are no faster.
_LEAST = 8


@dataclasses.dataclass(frozen=True)
class Layout:
  """Says where the experts are that stay on their devices.

  Attributes:
    count: experts of the model.
    fsdp: devices on this axis.
    tensor: devices on this axis.
  """

  count: int
  fsdp: int
  tensor: int

  @classmethod
  def make(cls, count: int, width: int, fsdp: int, tensor: int) -> "Layout":
    """Finds the layout of experts with a width inside.

    Raises:
      ValueError: experts, or their width, do not divide over the devices.
    """
    if count % fsdp:
      raise ValueError(
        f'mesh.experts = "tokens": mesh axis fsdp = {fsdp} does not divide '
        f"{count} experts"
      )
    if count % (fsdp * tensor) and width % tensor:
      raise ValueError(
        f'mesh.experts = "tokens": mesh axes fsdp x tensor = {fsdp * tensor} '
        f"do not divide {count} experts, nor tensor = {tensor} their width "
        f"{width}"
      )
    return cls(count, fsdp, tensor)

  @property
  def whole(self) -> bool:
    """Tells whether each expert is whole on its device."""
    return self.count % (self.fsdp * self.tensor) == 0

  @property
  def columns(self) -> int:
    """Returns into how many groups tensor divides the experts."""
    return self.tensor if self.whole else 1

  @property
  def local(self) -> int:
    """Returns the experts of a device."""
    return self.count // (self.fsdp * self.columns)

  def capacity(self, tokens: int, per_token: int) -> int:
    """Returns how many rows a device sends to each other in a round.

    Args:
      tokens: of the device.
      per_token: experts of each.
    """
    mean = -(-tokens * per_token // (self.fsdp * self.columns))
    # A token goes to an expert once.
    most = tokens * min(per_token, self.local)
    return min(max(_LEAST, mean), most)

  def spec(self, name: str) -> P:
    """Returns the partition of a param of all experts, [E, ...].

    Args:
      name: as in moe.Experts; "gate/lora_a" is A of its adapter.
    """
    if self.whole:
      return P(("tensor", "fsdp"))
    name, _, part = name.partition("/")
    if name == "down_bias":
      return P("fsdp")
    if name == "gate_up_bias":
      return P("fsdp", "tensor")
    of_in, of_out = ("tensor", None) if name == "down" else (None, "tensor")
    if part == "lora_a":
      of_out = None
    elif part == "lora_b":
      of_in = None
    return P("fsdp", of_in, of_out)

  def first(self, of_column: bool = False) -> Any:
    """Returns the first expert of this device, or its column, in shard_map."""
    first = 0
    if self.whole and self.tensor > 1:
      first = jax.lax.axis_index("tensor") * self.fsdp * self.local
    if not of_column and self.fsdp > 1:
      first += jax.lax.axis_index("fsdp") * self.local
    return first


@dataclasses.dataclass(frozen=True)
class Exchange:
  """Runs tokens through experts that are spread as a layout says.

  Attributes:
    layout: of the experts.
    apply: (rows [R, D], experts [R], arms [R] or None, kernels) -> [R, D]: runs
      rows, sorted by expert, through experts of this device, counted from its
      first; one >= layout.local is none, and gives zeros.
  """

  layout: Layout
  apply: Callable[..., jax.Array]

  def __call__(
    self,
    x: jax.Array,  # [N, D]
    weights: jax.Array,  # [N, k]
    experts: jax.Array,  # [N, k]
    arms: jax.Array | None,  # [N]
    kernels: PyTree,
  ) -> jax.Array:  # [N, D]
    """Sums the weighted outputs of each token's experts in this column.

    Runs in shard_map, where x, weights and kernels differ between the devices
    of all axes.
    """
    return _exchange(self, x, weights, experts, arms, kernels)

  def swap(self, x: jax.Array) -> jax.Array:  # [fsdp, ...]
    """Exchanges what is for each device for what each has for this one."""
    if self.layout.fsdp == 1:
      return x
    return jax.lax.all_to_all(x, "fsdp", 0, 0, tiled=True)

  def gather(self, x: jax.Array, at: jax.Array) -> jax.Array:
    """Sends entries of x [N, ...] to each device, and returns what comes.

    Args:
      x: on this device.
      at: [fsdp, C], which go to each; N sends zeros.

    Returns:
      [fsdp * C, ...]
    """
    x = self.swap(x.at[at].get(mode="fill", fill_value=0))
    return x.reshape(-1, *x.shape[2:])

  def send_back(self, x: jax.Array, order: jax.Array) -> jax.Array:
    """Sends what `gather` brought, and was then sorted, where it came from.

    Args:
      x: [fsdp * C, ...], in the new order.
      order: [fsdp * C], of each, the place where it came.

    Returns:
      [fsdp, C, ...]
    """
    x = x[jnp.argsort(order)]
    return self.swap(x.reshape(self.layout.fsdp, -1, *x.shape[1:]))


class _Places(NamedTuple):
  """Says which rows a device sends and receives.

  Attributes:
    order: [N * k], tokens' choices, one behind the other for each token, sorted
      by expert; those for other columns come last.
    first: [fsdp], where in `order` those for each device begin.
    sent: [fsdp], how many there are.
    ends: [fsdp, experts of a device], of the rows from each device, the place
      behind the last of each expert.
    rounds: until all are sent, on all devices.
  """

  order: jax.Array
  first: jax.Array
  sent: jax.Array
  ends: jax.Array
  rounds: jax.Array


def mark_varying(x: jax.Array, spec: P, axes: Sequence[str]) -> jax.Array:
  """Marks an array in shard_map as differing between devices of these axes.

  Its gradient is then summed over those that its partition does not name.
  """
  named = {
    axis
    for part in spec
    for axis in ((part,) if isinstance(part, str) else part or ())
  }
  missing = tuple(axis for axis in axes if axis not in named)
  return jax.lax.pcast(x, missing, to="varying")


def _places(e: Exchange, experts: jax.Array) -> _Places:
  """Finds the places of tokens' experts [N, k]."""
  devices, local = e.layout.fsdp, e.layout.local
  count = devices * local  # experts of the column
  expert = experts.reshape(-1) - e.layout.first(of_column=True)
  expert = jnp.where((expert >= 0) & (expert < count), expert, count)
  sizes = jnp.bincount(expert, length=count + 1)[:count]
  sizes = sizes.reshape(devices, local).astype(jnp.int32)
  sent = jnp.sum(sizes, axis=1)
  capacity = e.layout.capacity(*experts.shape)
  # The same number everywhere, since each round has collectives. Columns alone
  # differ over tensor, and newer JAX joins nothing that does not.
  axes = AXES if e.layout.columns > 1 else ROWS
  rounds = jax.lax.pmax(jnp.max(-(-sent // capacity)), axes)
  return _Places(
    order=jnp.argsort(expert, stable=True),
    first=jnp.cumsum(sent) - sent,
    sent=sent,
    ends=jnp.cumsum(e.swap(sizes), axis=1),
    rounds=rounds,
  )


def _round(
  e: Exchange, places: _Places, shape: tuple[int, ...], number: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Says what a round sends and receives.

  Args:
    e: the exchange.
    places: of all rows.
    shape: (N, k).
    number: of the round, from 0.

  Returns:
    Which of N * k choices go to each device [fsdp, C], N * k where none is
    left. And the experts, counted from the first here, of the rows that come
    [fsdp * C].
  """
  tokens, per_token = shape
  last = tokens * per_token
  place = number * e.layout.capacity(*shape) + jnp.arange(
    e.layout.capacity(*shape)
  )
  at = jnp.minimum(places.first[:, None] + place, last - 1)
  choices = jnp.where(
    place < places.sent[:, None], places.order[at].astype(jnp.int32), last
  )
  received = jnp.sum(place[:, None] >= places.ends[:, None, :], axis=-1)
  return choices, received.reshape(-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _exchange(e: Exchange, x, weights, experts, arms, kernels):
  """Runs as many rounds as there must be; see Exchange."""
  # JAX differentiates no loop of an unknown number of turns. By hand the
  # backward pass also sends rows once more only, and keeps nothing of a round.
  places = _places(e, experts)
  shape, flat = experts.shape, weights.reshape(-1)

  def run(state):
    number, total = state
    choices, received = _round(e, places, shape, number)
    tokens = choices // shape[1]
    order = jnp.argsort(received)
    of_rows = None if arms is None else e.gather(arms, tokens)[order]
    rows = e.gather(x, tokens)[order]
    y = e.apply(rows, received[order], of_rows, kernels)
    y = e.send_back(y, order).astype(jnp.float32)
    y *= flat.at[choices].get(mode="fill", fill_value=0)[..., None]
    return number + 1, total.at[tokens].add(y, mode="drop")

  total = jnp.zeros_like(x, jnp.float32)
  _, total = _repeat(run, places.rounds, total)
  return total.astype(x.dtype)


def _repeat(run, rounds, state):
  """Runs (number, state) -> (number + 1, state) for each round."""
  return jax.lax.while_loop(lambda s: s[0] < rounds, run, (jnp.int32(0), state))


def _forward(e: Exchange, x, weights, experts, arms, kernels):
  """Runs the exchange, and keeps its inputs alone."""
  y = _exchange(e, x, weights, experts, arms, kernels)
  return y, (x, weights, experts, arms, kernels)


def _backward(e: Exchange, kept, dy):
  """Sends tokens and gradients [N, D] to the experts, and gradients back."""
  x, weights, experts, arms, kernels = kept
  places = _places(e, experts)
  shape, flat = experts.shape, weights.reshape(-1)

  def run(state):
    number, (dx, dweights, dkernels) = state
    choices, received = _round(e, places, shape, number)
    tokens, order = choices // shape[1], jnp.argsort(received)
    rows, d_rows = (e.gather(v, tokens)[order] for v in (x, dy))
    scale = e.gather(flat, choices)[order]
    of_rows = None if arms is None else e.gather(arms, tokens)[order]

    def apply(rows, kernels):
      return e.apply(rows, received[order], of_rows, kernels)

    y, back = jax.vjp(apply, rows, kernels)
    d_scale = jnp.sum((y * d_rows).astype(jnp.float32), axis=-1)
    d_rows, more = back(d_rows * scale[:, None])
    d_rows = e.send_back(d_rows, order).astype(jnp.float32)
    return number + 1, (
      dx.at[tokens].add(d_rows, mode="drop"),
      dweights.at[choices].set(e.send_back(d_scale, order), mode="drop"),
      jax.tree.map(lambda a, b: a + b.astype(jnp.float32), dkernels, more),
    )

  inputs = x, flat, kernels
  zeros = jax.tree.map(lambda v: jnp.zeros_like(v, jnp.float32), inputs)
  _, found = _repeat(run, places.rounds, zeros)
  dx, dweights, dkernels = jax.tree.map(
    lambda v, like: v.astype(like.dtype), found, inputs
  )
  return dx, dweights.reshape(shape), None, None, dkernels


_exchange.defvjp(_forward, _backward)
