"""Computes the linear attention of gated DeltaNets, by rows or by a token.

The layers of Gated Delta Networks (Yang, Kautz and Hatamizadeh 2024, arXiv
2412.06464) have no cache that grows, but a memory, see delta_rule.py. Queries,
keys and values first go through a causal convolution, each channel by itself,
and silu. Queries and keys get length 1, and queries are divided by sqrt(E).

Nothing passes from a segment to the next: neither inputs of the convolution nor
memory. So padding, which is a segment of its own, reaches no other token.

Letters are those of delta_rule.py, and W for the inputs that the convolution
sees, the newest included.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bct_jax.models.architecture import DeltaNet
from bct_jax.models.delta_rule import delta_rule, delta_step, starts

_EPS = 1e-6  # added to squared lengths of queries and keys


class State(NamedTuple):
  """Holds what a layer keeps of the past of each row, whatever its length.

  The first three are the newest inputs of the convolution, the oldest first,
  and zero where there were fewer.
  """

  queries: jax.Array  # [B, K, E, W - 1]
  keys: jax.Array  # [B, K, E, W - 1]
  values: jax.Array  # [B, K, R, F, W - 1]
  memory: jax.Array  # [B, K, R, E, F] float32


def empty_state(net: DeltaNet, rows: int, dtype: jnp.dtype) -> State:
  """Makes the state before any token; inputs are kept in `dtype`."""
  k, past = net.key_heads, net.window - 1
  r = net.value_heads // k
  return State(
    jnp.zeros((rows, k, net.key_dim, past), dtype),
    jnp.zeros((rows, k, net.key_dim, past), dtype),
    jnp.zeros((rows, k, r, net.value_dim, past), dtype),
    jnp.zeros((rows, k, r, net.key_dim, net.value_dim), jnp.float32),
  )


def mix_rows(
  inputs: Sequence[jax.Array],
  kernels: Sequence[jax.Array],
  decay: jax.Array,
  rate: jax.Array,
  segments: jax.Array,
  begin: State | None = None,
  ends: jax.Array | None = None,
) -> tuple[jax.Array, State | None]:
  """Mixes the tokens of whole rows, within their segments.

  Args:
    inputs: queries and keys [B, T, K, E] and values [B, T, K, R, F].
    kernels: of their convolutions, [K, E, W], [K, E, W] and [K, R, F, W].
    decay, rate: [B, T, K, R] float32.
    segments: [B, T].
    begin: what each segment of a row begins with; None is nothing.
    ends: [A], places in B x T after which to keep the state; None keeps none.

  Returns:
    [B, T, K, R, F] float32, and the state [A, ...].
  """
  place = places(segments)
  olds = (None,) * 3 if begin is None else begin[:3]
  q, k, v = (
    jax.nn.silu(convolve(x, kernel, place, old))
    for x, kernel, old in zip(inputs, kernels, olds, strict=True)
  )
  y, memory = delta_rule(
    *(_queries(q), _unit(k), v, decay, rate, segments),
    None if begin is None else begin.memory,
    ends,
  )
  if ends is None or memory is None:
    return y, None
  windows = (
    window_at(x, ends, place, old, kernel.shape[-1])
    for x, kernel, old in zip(inputs, kernels, olds, strict=True)
  )
  q, k, v = windows
  return y, State(q, k, v, memory)


def mix_token(
  inputs: Sequence[jax.Array],
  kernels: Sequence[jax.Array],
  decay: jax.Array,
  rate: jax.Array,
  state: State,
) -> tuple[jax.Array, State]:
  """Runs one more token of each row; arguments as in `mix_rows`, without T.

  Returns:
    [B, K, R, F] float32, and the new state.
  """
  mixed, windows = [], []
  for x, kernel, window in zip(inputs, kernels, state[:3], strict=True):
    whole = jnp.concatenate([window, x[..., None].astype(window.dtype)], -1)
    y = jnp.sum(whole.astype(jnp.float32) * kernel.astype(jnp.float32), -1)
    mixed.append(jax.nn.silu(y))
    windows.append(whole[..., 1:])
  q, k, v = mixed
  y, memory = delta_step(_queries(q), _unit(k), v, decay, rate, state.memory)
  q, k, v = windows
  return y, State(q, k, v, memory)


def _unit(x: jax.Array) -> jax.Array:
  """Gives the vectors of the last axis length 1."""
  return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _EPS)


def _queries(x: jax.Array) -> jax.Array:
  """Gives queries the length 1 / sqrt(E)."""
  return _unit(x) * x.shape[-1] ** -0.5


def places(segments: jax.Array) -> jax.Array:  # [B, T] -> [B, T]
  """Counts the tokens of its segment before each token."""
  at = jnp.arange(segments.shape[1])
  start = jnp.where(starts(segments), at, 0)
  return at - jax.lax.cummax(start, axis=1)


def convolve(
  x: jax.Array,  # [B, T, ...]
  kernel: jax.Array,  # [..., W]
  place: jax.Array,  # [B, T], see `places`
  begin: jax.Array | None = None,  # [B, ..., W - 1]
) -> jax.Array:  # [B, T, ...] float32
  """Sums the newest W inputs of each channel, weighted by its kernel.

  Args:
    x: inputs; those of other segments count as zero.
    kernel: the newest input has the last weight.
    place: of each token in its segment.
    begin: the inputs before each segment of a row.
  """
  kernel = kernel.astype(jnp.float32)
  out = kernel[..., -1] * x.astype(jnp.float32)
  for back in range(1, kernel.shape[-1]):
    past = _look_back(x, back, place, begin)
    out += kernel[..., -1 - back] * past
  return out


def _look_back(
  x: jax.Array, back: int, place: jax.Array, begin: jax.Array | None
) -> jax.Array:
  """Returns the inputs `back` tokens before each; see `convolve`."""
  x = x.astype(jnp.float32)
  if not back:
    return x
  length, more = x.shape[1], [(0, 0)] * (x.ndim - 2)
  past = jnp.pad(x, [(0, 0), (back, 0), *more])[:, :length]
  if begin is None:
    before = jnp.zeros_like(past)
  else:
    old = begin.shape[-1]
    # [B, T, W - 1], which of the inputs before the segment it is.
    which = jax.nn.one_hot(old + place - back, old)
    before = jnp.einsum(
      "b...s,bts->bt...", begin.astype(jnp.float32), which, precision="highest"
    )
  inside = (place >= back).reshape(*place.shape, *[1] * len(more))
  return jnp.where(inside, past, before)


def window_at(
  x: jax.Array,  # [B, T, ...]
  ends: jax.Array,  # [A], places in B x T
  place: jax.Array,  # [B, T]
  begin: jax.Array | None,  # [B, ..., W - 1]
  size: int,  # W
) -> jax.Array:  # [A, ..., W - 1], of the dtype of x
  """Returns the newest inputs up to some tokens, the oldest first."""
  newest = [
    _look_back(x, back, place, begin).reshape(-1, *x.shape[2:])[ends]
    for back in reversed(range(size - 1))
  ]
  if not newest:
    return jnp.zeros((len(ends), *x.shape[2:], 0), x.dtype)
  return jnp.stack(newest, axis=-1).astype(x.dtype)
