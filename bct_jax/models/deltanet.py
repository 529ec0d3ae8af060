"""Computes linear attention by the gated delta rule, by chunks or by a token.

The layers of Gated Delta Networks (Yang, Kautz and Hatamizadeh 2024, arXiv
2412.06464) have no cache that grows. A value head keeps a matrix S, its
memory, which maps keys to values. A token with query q, key k, value v, log
decay g <= 0 and rate b in (0, 1) changes it, and then reads it:

    S <- exp(g) S
    S <- S + k (b (v - S' k))'
    y  = S' q

Before that, queries, keys and values go through a causal convolution, each
channel by itself, and silu. Queries and keys get length 1, and queries are
divided by sqrt(E).

Nothing passes from a segment to the next: neither inputs of the convolution nor
memory. So padding, which is a segment of its own, reaches no other token.

Letters beside those of types.py:

    K key heads              R value heads of each key head
    E width of a key         F width of a value
    W inputs that the convolution sees, the newest included
    A tokens after which the state is kept
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bct_jax.mesh import ROWS, constrain
from bct_jax.models.config import DeltaNet

_CHUNK = 64  # tokens that products of matrices take at a time, a power of 2
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
  return y, State(*windows, memory)


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
  q, k = _queries(q), _unit(k)
  memory = jnp.exp(decay)[..., None, None] * state.memory
  held = jnp.einsum("bke,bkref->bkrf", k, memory)
  change = rate[..., None] * (v - held)
  memory += k[:, :, None, :, None] * change[..., None, :]
  y = jnp.einsum("bke,bkref->bkrf", q, memory)
  return y, State(*windows, memory)


def _unit(x: jax.Array) -> jax.Array:
  """Gives the vectors of the last axis length 1."""
  return x * jax.lax.rsqrt(jnp.sum(x * x, axis=-1, keepdims=True) + _EPS)


def _queries(x: jax.Array) -> jax.Array:
  """Gives queries the length 1 / sqrt(E)."""
  return _unit(x) * x.shape[-1] ** -0.5


# --- convolution --------------------------------------------------------------


def places(segments: jax.Array) -> jax.Array:  # [B, T] -> [B, T]
  """Counts the tokens of its segment before each token."""
  at = jnp.arange(segments.shape[1])
  start = jnp.where(_begins(segments), at, 0)
  return at - jax.lax.cummax(start, axis=1)


def _begins(segments: jax.Array) -> jax.Array:  # [B, T] -> [B, T] bool
  """Tells which tokens begin a segment."""
  changes = segments[:, 1:] != segments[:, :-1]
  return jnp.pad(changes, [(0, 0), (1, 0)], constant_values=True)


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
  size = kernel.shape[-1]
  return sum(
    kernel[..., size - 1 - back].astype(jnp.float32)
    * _look_back(x, back, place, begin)
    for back in range(size)
  )


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


# --- the rule over rows -------------------------------------------------------

# A row of 5 tokens in chunks of 4, with two segments:
#
#   segment   1 1 1 2 | 2        token 3 begins in the first chunk
#   sees      the tokens of its segment in its chunk, by products; and of what
#             was before the chunk the memory ("carried"), if its segment had
#             begun by then; or what all segments begin with ("fresh")
#   memory    after a chunk is that of its last token's segment


def delta_rule(
  q: jax.Array,  # [B, T, K, E] float32
  k: jax.Array,  # [B, T, K, E] float32
  v: jax.Array,  # [B, T, K, R, F] float32
  decay: jax.Array,  # [B, T, K, R] float32
  rate: jax.Array,  # [B, T, K, R] float32
  segments: jax.Array,  # [B, T]
  begin: jax.Array | None = None,  # [B, K, R, E, F]
  ends: jax.Array | None = None,  # [A]
) -> tuple[jax.Array, jax.Array | None]:  # [B, T, K, R, F], [A, K, R, E, F]
  """Runs the rule of the module over rows, chunk by chunk.

  With G_i the sum of the decays of a chunk up to token i, and W_ij =
  exp(G_i - G_j) for j <= i in one segment, else 0, the values u that the tokens
  of a chunk write (Yang et al. 2024, section 3.3) solve

    u_i + b_i sum over j < i of W_ij (k_i . k_j) u_j = b_i (v_i - c_i S' k_i)

  where S is the memory before the chunk and c_i = exp(G_i), or 0 in a segment
  that begins in the chunk. All chunks are solved at once, for v and for k, and
  a scan then takes S through them.

  Args:
    q, k, v, decay, rate: of each token; q and k as the module says.
    segments: which tokens see each other.
    begin: memory that each segment of a row begins with; None is zeros.
    ends: places in B x T; None keeps no memory.

  Returns:
    What each token reads, and the memory after the tokens at `ends`.
  """
  rows, length = segments.shape
  size = min(_CHUNK, 1 << (length - 1).bit_length())
  # By chunk, with the tokens of a chunk behind the heads: [n, B, K, C, E] ...
  split = functools.partial(_split, size=size)
  new, ids = split(_begins(segments)), split(segments)  # [n, B, C]
  q, k, v = (split(x, -2) for x in (q, k, v))
  decay, rate = split(decay, -1), split(rate, -1)  # [n, B, K, R, C]

  total = jnp.cumsum(decay, axis=-1)
  at = jnp.arange(size)
  sees = (ids[..., :, None] == ids[..., None, :]) & (at[:, None] >= at)
  gap = total[..., :, None] - total[..., None, :]
  # Masked before exp: what lies ahead would be infinite.
  weights = jnp.exp(jnp.where(sees[:, :, None, None], gap, -jnp.inf))
  first = jax.lax.cummax(jnp.where(new, at, -1), axis=2)[:, :, None, None]
  shares = [jnp.where(first < 0, jnp.exp(total), 0)]  # carried
  held = []
  if begin is not None:
    before = jnp.take_along_axis(total - decay, jnp.maximum(first, 0), axis=-1)
    shares.append(jnp.where(first >= 0, jnp.exp(total - before), 0))  # fresh
    held.append(begin)

  def pairs(x):  # [n, B, K, 1, C, C]
    return jnp.einsum("nbkie,nbkje->nbkij", x, k)[:, :, :, None]

  keys = k[:, :, :, None]
  sides = [v, *(share[..., None] * keys for share in shares)]
  inverse = _invert(rate[..., None] * pairs(k) * weights)
  solved = inverse @ (rate[..., None] * jnp.concatenate(sides, axis=-1))
  value, *reads = jnp.split(
    solved, [v.shape[-1] + i * k.shape[-1] for i in range(len(shares))], -1
  )

  def run(memory, xs):
    q, k, pair, weights, value, reads, shares = xs
    memories = [memory, *held]
    for read, m in zip(reads, memories, strict=True):
      value -= read @ m
    y = pair @ value
    for share, m in zip(shares, memories, strict=True):
      y += share[..., None] * jnp.einsum("bkce,bkref->bkrcf", q, m)
    last = [share[..., -1] for share in shares]
    after = _remember(memories, last, k, weights[..., -1, :], value)
    return after, (y, None if ends is None else (memory, value))

  zeros = jnp.zeros((rows, *v.shape[2:4], k.shape[-1], v.shape[-1]))
  xs = (q, k, pairs(q) * weights, weights, value, reads, shares)
  _, (y, kept) = jax.lax.scan(run, constrain(zeros, ROWS, "tensor"), xs)
  y = jnp.moveaxis(y, (0, -2), (1, 2))  # [B, n, C, K, R, F]
  y = y.reshape(rows, -1, *y.shape[3:])[:, :length]
  if ends is None:
    return y, None
  memory, value = kept
  row, token = ends // length, ends % length
  chunk, token = token // size, token % size
  return y, _remember(
    [memory[chunk, row], *(m[row] for m in held)],
    [share[chunk, row, :, :, token] for share in shares],
    k[chunk, row],
    weights[chunk, row, :, :, token],
    value[chunk, row],
  )


def _split(x: jax.Array, to: int | None = None, *, size: int) -> jax.Array:
  """Splits [B, T, ...] into chunks [n, B, C, ...], and moves C to axis `to`."""
  pad = -x.shape[1] % size
  x = jnp.pad(x, [(0, 0), (0, pad), *[(0, 0)] * (x.ndim - 2)])
  x = x.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)
  return x if to is None else jnp.moveaxis(x, 2, to)


def _invert(system: jax.Array) -> jax.Array:  # [..., C, C] -> [..., C, C]
  """Inverts I + the part of `system` below its diagonal; C is a power of 2.

  The inverses of blocks on the diagonal make those of blocks twice as large:
  that of [[A, 0], [L, B]] has -B^-1 L A^-1 in its corner. This is as stable as
  substitution, which JAX leaves to LAPACK on a CPU: there, devices that are
  threads of one pool wait for each other forever.
  """
  count = system.shape[-1]
  inverse = jnp.ones((*system.shape[:-1], 1, 1), system.dtype)
  size = 1
  while size < count:
    pairs = count // (2 * size)
    shape = (*system.shape[:-2], pairs, 2, size, pairs, 2, size)
    below = system.reshape(shape)[..., :, 1, :, :, 0, :]
    below = jnp.einsum("...isit->...ist", below)
    a, b = inverse[..., ::2, :, :], inverse[..., 1::2, :, :]
    corner = -jnp.matmul(
      jnp.matmul(b, below, precision="highest"), a, precision="highest"
    )
    rows = [[a, jnp.zeros_like(a)], [corner, b]]
    inverse = jnp.concatenate(
      [jnp.concatenate(row, axis=-1) for row in rows], axis=-2
    )
    size *= 2
  return inverse[..., 0, :, :]


def _remember(
  memories: Sequence[jax.Array],  # [B, K, R, E, F] each
  shares: Sequence[jax.Array],  # [B, K, R] each
  k: jax.Array,  # [B, K, C, E]
  weights: jax.Array,  # [B, K, R, C]
  value: jax.Array,  # [B, K, R, C, F]
) -> jax.Array:  # [B, K, R, E, F]
  """Adds what is left of memories and what the tokens of a chunk wrote."""
  keys = k[:, :, None] * weights[..., None]  # [B, K, R, C, E]
  out = jnp.einsum("bkrce,bkrcf->bkref", keys, value)
  for share, memory in zip(shares, memories, strict=True):
    out += share[..., None, None] * memory
  return out
