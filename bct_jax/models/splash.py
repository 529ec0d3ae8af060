"""Computes attention by splash attention, JAX's Pallas kernel for TPU."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec as P

from bct_jax.mesh import ROWS

# Lanes of a vector register of a TPU: lengths are padded to a multiple.
_LANES = 128
_BLOCK = 512  # queries and keys of a tile of the kernel, at most


@struct.dataclass
class Segments:
  """Holds what splash attention makes its mask from, in place of a mask.

  A token sees itself and the tokens of its segment that stand before it in the
  row.

  Attributes:
    ids: the segment of each token, [B, T] int32; padding is segment 0.
    window: keys that a query sees at most, itself included; None is all.
  """

  ids: Any
  window: int | None = struct.field(pytree_node=False, default=None)


def attend_splash(
  q: jax.Array,  # [B, T, N, H]
  k: jax.Array,  # [B, T, K, H]
  v: jax.Array,  # [B, T, K, H]
  segments: Segments,
  scale: float,
  softcap: float | None,
  interpret: bool = False,
) -> jax.Array:  # [B, T, N, H]
  """Computes causal attention within segments by JAX's kernel for TPU.

  Each device runs its own rows and heads. Tokens must stand in a row in the
  order of their positions. Outputs at padding are finite, but not those of the
  other forms.

  Args:
    q, k, v: queries, keys and values.
    segments: which tokens see each other.
    scale: of the scores.
    softcap: bound of the scores, see attention.py.
    interpret: runs the kernel on any platform, slowly.
  """
  length = q.shape[1]
  pad = -length % _LANES

  def local(q, k, v, ids):
    kernel = _make_kernel(
      q.shape[2], length + pad, segments.window, softcap, interpret
    )

    def pad_length(x):
      return jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))

    q, k, v = (pad_length(x).swapaxes(1, 2) for x in (q * scale, k, v))
    ids = pad_length(ids)
    y: Any = jax.vmap(kernel)(q, k, v, splash_attention.SegmentIds(ids, ids))
    return y.swapaxes(1, 2)[:, :length].astype(v.dtype)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return local(q, k, v, segments.ids)
  heads = P(ROWS, None, "tensor")
  run = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(heads, heads, heads, P(ROWS)),
    out_specs=heads,
    check_vma=False,
  )
  return run(q, k, v, segments.ids)


def _make_kernel(
  heads: int,
  length: int,
  window: int | None,
  softcap: float | None,
  interpret: bool,
) -> Any:
  """Makes the kernel of a row; its length is a multiple of _LANES."""
  mask: Any = splash_attention.CausalMask((length, length))
  if window is not None:
    mask = splash_attention.LocalMask((length, length), (window - 1, 0), 0)
  block = math.gcd(length, _BLOCK)
  return splash_attention.make_splash_mha(
    splash_attention.MultiHeadMask([mask] * heads),
    block_sizes=splash_attention.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      block_q_dq=block,
      block_kv_dq=block,
    ),
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=softcap,
    interpret=interpret,
  )
