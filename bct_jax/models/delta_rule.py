"""Computes the gated delta rule over rows in chunks, or for a single token.

A value head keeps a matrix S, its memory, which maps keys to values. A token
with query q, key k, value v, log decay g <= 0 and rate b in (0, 1) changes it,
and then reads it (Yang, Kautz and Hatamizadeh 2024, arXiv 2412.06464):

    S <- exp(g) S
    S <- S + k (b (v - S' k))'
    y  = S' q

Letters beside those of types.py:

    K key heads              R value heads of each key head
    E width of a key         F width of a value
    A tokens after which the memory is kept
    n chunks                 C tokens of a chunk
"""

# A row of 5 tokens in chunks of 4, with two segments:
#
#   segment   1 1 1 2 | 2        token 3 begins in the first chunk
#   sees      the tokens of its segment in its chunk, by products; and of what
#             was before the chunk the memory ("carried"), if its segment had
#             begun by then; or what all segments begin with ("fresh")
#   memory    after a chunk is that of its last token's segment

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bct_jax.mesh import ROWS, constrain

_CHUNK = 64  # tokens that products of matrices take at a time, a power of 2


def delta_step(
  q: jax.Array,  # [B, K, E] float32
  k: jax.Array,  # [B, K, E] float32
  v: jax.Array,  # [B, K, R, F] float32
  decay: jax.Array,  # [B, K, R] float32
  rate: jax.Array,  # [B, K, R] float32
  memory: jax.Array,  # [B, K, R, E, F]
) -> tuple[jax.Array, jax.Array]:  # [B, K, R, F], [B, K, R, E, F]
  """Runs the rule for one token of each row; returns y and the new memory."""
  memory = jnp.exp(decay)[..., None, None] * memory
  held = jnp.einsum("bke,bkref->bkrf", k, memory)
  change = rate[..., None] * (v - held)
  memory += k[:, :, None, :, None] * change[..., None, :]
  return jnp.einsum("bke,bkref->bkrf", q, memory), memory


def starts(segments: jax.Array) -> jax.Array:  # [B, T] -> [B, T] bool
  """Tells which tokens begin a segment."""
  changes = segments[:, 1:] != segments[:, :-1]
  return jnp.pad(changes, [(0, 0), (1, 0)], constant_values=True)


class _Chunks(NamedTuple):
  """Holds what a scan reads of each of n chunks of C tokens.

  Attributes:
    q, k: queries and keys, [n, B, K, C, E].
    pairs: weights times products of queries and keys, [n, B, K, R, C, C].
    weights: W of `delta_rule`, [n, B, K, R, C, C].
    value: what tokens write if memories are zero, [n, B, K, R, C, F].
    reads: for each memory, what multiplies it in what they write, [..., C, E].
    shares: for each memory, how much a token still sees of it, [n, B, K, R, C].
  """

  q: jax.Array
  k: jax.Array
  pairs: jax.Array
  weights: jax.Array
  value: jax.Array
  reads: Sequence[jax.Array]
  shares: Sequence[jax.Array]


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
  held = [] if begin is None else [begin]
  chunks = _prepare(q, k, v, decay, rate, segments, size, bool(held))

  def run(memory, c):
    y, value, after = _run_chunk(c, [memory, *held])
    return after, (y, memory, value) if ends is not None else (y,)

  zeros = jnp.zeros((rows, *v.shape[2:4], k.shape[-1], v.shape[-1]))
  zeros = constrain(zeros, ROWS, "tensor")
  _, (y, *kept) = jax.lax.scan(run, zeros, chunks)
  y = jnp.moveaxis(y, (0, -2), (1, 2))  # [B, n, C, K, R, F]
  y = y.reshape(rows, -1, *y.shape[3:])[:, :length]
  if ends is None:
    return y, None
  memory, value = kept
  row, token = ends // length, ends % length
  chunk, token = token // size, token % size
  return y, _remember(
    [memory[chunk, row], *(m[row] for m in held)],
    [share[chunk, row, :, :, token] for share in chunks.shares],
    chunks.k[chunk, row],
    chunks.weights[chunk, row, :, :, token],
    value[chunk, row],
  )


def _prepare(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  decay: jax.Array,
  rate: jax.Array,
  segments: jax.Array,
  size: int,
  begins: bool,
) -> _Chunks:
  """Splits rows into chunks, and computes all that needs no memory.

  Args:
    q, k, v, decay, rate, segments: see `delta_rule`.
    size: tokens of a chunk, a power of 2.
    begins: whether segments begin with a memory.
  """
  split = functools.partial(_split, size=size)
  new, ids = split(starts(segments)), split(segments)  # [n, B, C]
  q, k, v = (split(x, -2) for x in (q, k, v))  # [n, B, K, C, E] ...
  decay, rate = split(decay, -1), split(rate, -1)  # [n, B, K, R, C]

  total = jnp.cumsum(decay, axis=-1)
  at = jnp.arange(size)
  sees = (ids[..., :, None] == ids[..., None, :]) & (at[:, None] >= at)
  gap = total[..., :, None] - total[..., None, :]
  # Masked before exp: what lies ahead would be infinite.
  weights = jnp.exp(jnp.where(sees[:, :, None, None], gap, -jnp.inf))
  first = jax.lax.cummax(jnp.where(new, at, -1), axis=2)[:, :, None, None]
  shares = [jnp.where(first < 0, jnp.exp(total), 0)]  # carried
  if begins:
    before = jnp.take_along_axis(total - decay, jnp.maximum(first, 0), axis=-1)
    shares.append(jnp.where(first >= 0, jnp.exp(total - before), 0))  # fresh

  def pairs(x):  # [n, B, K, 1, C, C]
    return jnp.einsum("nbkie,nbkje->nbkij", x, k)[:, :, :, None]

  sides = [v, *(share[..., None] * k[:, :, :, None] for share in shares)]
  sides = rate[..., None] * jnp.concatenate(sides, axis=-1)
  solved = _invert(rate[..., None] * pairs(k) * weights) @ sides
  cuts = [v.shape[-1] + i * k.shape[-1] for i in range(len(shares))]
  value, *reads = jnp.split(solved, cuts, axis=-1)
  return _Chunks(q, k, pairs(q) * weights, weights, value, reads, shares)


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


def _run_chunk(
  c: _Chunks, memories: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Takes memories through one chunk, which has no axis n.

  Args:
    c: the chunk.
    memories: before it, [B, K, R, E, F] each, in the order of its `shares`.

  Returns:
    What its tokens read and write, [B, K, R, C, F] both, and the memory after
    it.
  """
  value = c.value
  for read, m in zip(c.reads, memories, strict=True):
    value -= read @ m
  y = c.pairs @ value
  for share, m in zip(c.shares, memories, strict=True):
    y += share[..., None] * jnp.einsum("bkce,bkref->bkrcf", c.q, m)
  last = [share[..., -1] for share in c.shares]
  return y, value, _remember(memories, last, c.k, c.weights[..., -1, :], value)


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
