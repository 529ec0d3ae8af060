"""The decoder of all model families, as pure functions of params and arrays.

The params of its blocks (see layers.py) are stacked on a leading layer
dimension and run by one `lax.scan`. What differs between layers, windows and
rotary positions, is made before it, once per kind. For decoding, `unstack`
gives the layers as a list, which a plain loop runs without slicing a stacked
array at every token. Causality, padding and packing all follow from `positions`
and `segments`: a query sees the keys of its own segment that are not after it,
and in a layer with a window not too far before it.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bct_jax.mesh import ROWS, axis_size, constrain
from bct_jax.models.attention import Prefix, Segments, Slots
from bct_jax.models.config import ModelConfig
from bct_jax.models.layers import Block, RMSNorm, rope_angles
from bct_jax.types import PyTree

REMAT = {
  "none": None,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Pure functions of (params, arrays) for one architecture.

  Attributes:
    config: the architecture.
    dtype: of activations and matrix products; norms, softmax, rotary angles
      and logits are float32 whatever it is.
    remat: what the backward pass recomputes: none, dots (all but matrix
      products) or full (each block).
    attention: the form of attention over whole rows, see attention.py.
  """

  config: ModelConfig
  dtype: Any = jnp.float32
  remat: str = "full"
  attention: str = "xla"

  def __post_init__(self):
    if self.remat not in REMAT:
      raise ValueError(f"remat {self.remat!r}: choose one of {list(REMAT)}")

  @property
  def block(self) -> Block:
    return Block(self.config, self.dtype, self.attention)

  @property
  def _norm(self) -> RMSNorm:
    return RMSNorm(self.config.norm_eps, self.config.norm_plus_one)

  def init(self, rng: jax.Array) -> PyTree:
    """Random float32 params; jax.eval_shape of it gives shapes alone."""
    c = self.config
    rngs = jax.random.split(rng, c.num_layers + 2)
    x = jnp.zeros((1, 1, c.width), self.dtype)
    angles = rope_angles(jnp.zeros((1, 1), jnp.int32), None, c.head_dim)
    mask = jnp.ones((1, 1, 1, 1), bool)

    def layer(key):
      return self.block.init(key, x, angles, mask)["params"]

    normal = nn.initializers.normal(0.02)
    params = {
      "embed": normal(rngs[0], (c.vocab_size, c.width), jnp.float32),
      "layers": jax.vmap(layer)(rngs[2:]),
      "norm": self._norm.init(rngs[0], x)["params"],
    }
    if not c.tied:
      params["head"] = normal(rngs[1], (c.width, c.vocab_size), jnp.float32)
    return params

  def hidden(
    self,
    params: PyTree,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
  ) -> jax.Array:
    """Final hidden states [B, T, D] of whole rows (see types.Model)."""
    return self.prefill(params, tokens, positions, segments)[0]

  def prefill(
    self,
    params: PyTree,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    prefix: Sequence[Prefix] | None = None,
    arms: jax.Array | None = None,
  ) -> tuple[jax.Array, PyTree]:
    """Runs whole rows, padded or packed.

    Args:
      params: stacked or `unstack`ed.
      tokens, positions, segments: [B, T]; segment 0 marks padding.
      prefix: what all segments begin with, per layer, at positions from 0;
        only with unstacked params. `positions` go on behind it.
      arms: [B, T], whose adapter each token has, if params hold several.

    Returns:
      hidden [B, T, D], and the keys and values of all layers, [B, T, K, H]
      each: a list of pairs, or a pair of stacked arrays.
    """
    if self.attention == "splash" and prefix is None:
      return self._forward(params, tokens, positions, None, segments, arms=arms)
    distance = positions[:, :, None] - positions[:, None, :]  # [B, T, T]
    seen = (
      (segments[:, :, None] == segments[:, None, :])
      & (segments[:, None, :] > 0)
      & (distance >= 0)
    )
    if prefix is not None:
      before = positions[:, :, None] - jnp.arange(prefix[0].keys.shape[1])
      distance = jnp.concatenate([before, distance], axis=-1)  # [B, T, S+T]
      seen = jnp.concatenate([jnp.ones_like(before, bool), seen], axis=-1)
    return self._forward(
      params, tokens, positions, distance, seen, prefix, arms=arms
    )

  def decode(
    self,
    params: PyTree,
    tokens: jax.Array,
    positions: jax.Array,
    slots: Sequence[Slots],
    arms: jax.Array | None = None,
  ) -> tuple[jax.Array, Sequence[Slots]]:
    """One more token per row, written to the slot of its position.

    Args:
      params: unstacked.
      tokens, positions: [B]; slots before a row's position hold its past.
      slots: per layer.
      arms: [B], see `prefill`.

    Returns:
      hidden [B, D] and the new slots.
    """
    keys = jnp.arange(slots[0].keys.shape[-1])
    distance = positions[:, None, None] - keys  # [B, 1, S]
    x, filled = self._forward(
      params,
      tokens[:, None],
      positions[:, None],
      distance,
      distance >= 0,
      slots,
      positions,
      None if arms is None else arms[:, None],
    )
    return x[:, 0], filled

  def logits(self, params, hidden):  # [..., D] -> [..., V]
    """Scores over the vocabulary in float32 (see types.Model)."""
    table = params["embed"] if self.config.tied else params["head"]
    form = "...d,vd->...v" if self.config.tied else "...d,dv->...v"
    out = jnp.einsum(
      form,
      hidden,
      table.astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    cap = self.config.final_softcap
    return out if cap is None else cap * jnp.tanh(out / cap)

  def head_blocks(self, params: PyTree, most: int) -> tuple[PyTree, np.ndarray]:
    """The head in blocks of the vocabulary, for a scan over them.

    Args:
      params: of the model.
      most: ids of a block on a device.

    Returns:
      What `logits` takes, with a first axis of blocks, spread as the head is;
      and the ids [blocks, ids of a block], -1 where a block is filled up.
    """
    tied = self.config.tied
    name, axis = ("embed", 0) if tied else ("head", 1)
    parts = axis_size("tensor")
    own = self.config.vocab_size // parts
    count = -(-own // most)
    size = -(-own // count)
    pad = count * size - own
    ids = np.arange(parts * own, dtype=np.int32).reshape(parts, own)
    ids = np.pad(ids, [(0, 0), (0, pad)], constant_values=-1)
    ids = ids.reshape(parts, count, size).swapaxes(0, 1)

    table = params[name].astype(self.dtype)
    width = table.shape[1 - axis]
    if tied:  # [V, D]
      table = jnp.pad(
        table.reshape(parts, own, width), [(0, 0), (0, pad), (0, 0)]
      ).reshape(parts, count, size, width)
      table = table.swapaxes(0, 1).reshape(count, parts * size, width)
      table = constrain(table, None, "tensor", "fsdp")
    else:  # [D, V]
      table = jnp.pad(
        table.reshape(width, parts, own), [(0, 0), (0, 0), (0, pad)]
      ).reshape(width, parts, count, size)
      table = table.transpose(2, 0, 1, 3).reshape(count, width, parts * size)
      table = constrain(table, None, "fsdp", "tensor")
    return {name: table}, ids.reshape(count, parts * size)

  def gathered(self, block: PyTree) -> PyTree:
    """A block of `head_blocks` with its whole width on every device."""
    if self.config.tied:
      return {"embed": constrain(block["embed"], "tensor", None)}
    return {"head": constrain(block["head"], None, "tensor")}

  def _embed(self, params, tokens):  # [B, T] -> [B, T, D]
    table = params["embed"].astype(self.dtype)
    if isinstance(params["layers"], (list, tuple)):  # no fsdp, see `unstack`
      x = table[tokens]
    else:
      # Every device looks up its own part of the width for the rows of all,
      # which then change places: the table itself is not gathered, nor is its
      # gradient summed over devices. Left to itself, XLA would give every
      # device all rows of the result.
      x = table[constrain(tokens, "data", None)]
      x = constrain(x, "data", None, "fsdp")
    if self.config.embed_scale != 1:
      x *= jnp.asarray(self.config.embed_scale, self.dtype)
    return constrain(x, ROWS, None, None)

  def _forward(
    self,
    params,
    tokens,
    positions,
    distance,
    seen,
    past=None,
    at=None,
    arms=None,
  ):
    """Hidden states [B, T, D] and what each layer gives to the next tokens."""
    c = self.config
    kvs: Any
    mask_of = _by_kind(
      [layer.window for layer in c.layers],
      lambda w: (
        Segments(seen, w)
        if distance is None
        else (seen if w is None else seen & (distance < w))[:, None]
      ),
    )  # [B, 1, T, keys]
    angles_of = _by_kind(
      [layer.rope for layer in c.layers],
      lambda rope: rope_angles(positions, rope, c.head_dim),
    )
    x = self._embed(params, tokens)

    def run(x, layer, i, past=None):
      return self.block.apply(
        {"params": layer}, x, angles_of(i), mask_of(i), past, at, arms
      )

    layers = params["layers"]
    if isinstance(layers, (list, tuple)):
      kvs = []
      for i, layer in enumerate(layers):
        x, kv = run(x, layer, i, None if past is None else past[i])
        kvs.append(kv)
    else:

      def body(x, xs):
        layer, i = xs
        if self.dtype != jnp.float32:
          layer = jax.tree.map(_in_turn, layer)
        return run(x, layer, i)

      if self.remat != "none":
        body = jax.checkpoint(body, policy=REMAT[self.remat], prevent_cse=False)
      x, kvs = jax.lax.scan(body, x, (layers, jnp.arange(c.num_layers)))
    out: Any = self._norm.apply({"params": params["norm"]}, x)
    return out, kvs


@jax.custom_jvp
def _in_turn(x: jax.Array) -> jax.Array:
  """The same array, which is cast where it is used if it is float32.

  XLA else casts the stacked params before a loop over layers, and holds a copy
  of all of them in the dtype of the products. It casts no array of bits.
  """
  if x.dtype != jnp.float32:
    return x
  bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
  bits = jax.lax.optimization_barrier(bits)
  return jax.lax.bitcast_convert_type(bits, x.dtype)


_in_turn.defjvp(lambda x, dx: (_in_turn(*x), *dx))


def _by_kind(kinds: Sequence[Any], make: Callable[[Any], PyTree]):
  """A function from a layer's number to `make` of its kind, made once each.

  The number may be traced: the arrays of all kinds are then indexed by it.
  """
  distinct = list(dict.fromkeys(kinds))
  made = [make(kind) for kind in distinct]
  if len(made) == 1:
    return lambda i: made[0]
  which = np.array([distinct.index(kind) for kind in kinds])
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *made)

  def of(i):
    if isinstance(i, int):
      return made[which[i]]
    return jax.tree.map(lambda x: x[jnp.asarray(which)[i]], stacked)

  return of


def unstack(params: PyTree) -> PyTree:
  """The same params with `layers` as a list, for decoding."""
  count = jax.tree.leaves(params["layers"])[0].shape[0]
  layers = [
    jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(count)
  ]
  return {**params, "layers": layers}
