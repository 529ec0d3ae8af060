"""Runs the decoder of all model families, as pure functions of params.

The params of its blocks (see layers.py) are stacked on a leading layer
dimension, and one `lax.scan` runs them. Windows and rotary positions differ
between layers: their masks and angles are made before the scan, once per kind.
Where layers with linear attention alternate with others, each kind has stacks
of its own, and a step of the scan runs as many layers as it takes until the
kinds repeat.

Causality, padding and packing all follow from `positions` and `segments`. A
query sees the keys of its own segment that are not after it. In a layer with a
window it sees only the nearest of these.
"""

# Two ways through the same blocks, for params["layers"] stacked or unstacked:
#
#   stacked: training, scoring    scan over layers, so that a block is compiled
#                                 once, and remat decides what is kept
#     forward    x0 -> block 0 -> x1 -> block 1 -> x2 ... -> norm -> hidden
#                (with remat = full only x0, x1, x2 ... stay in memory)
#     backward   block 1 again from x1, its gradient, block 0 again from x0, ...
#
#   unstacked: sampling           a loop over a list: a scan would slice, so
#                                 copy, the params of a layer at every token
#     prefill    common prefix    0 1 2 3            once for all prompts
#     prefill    each prompt              4 5 6      packed; sees the prefix
#     decode     each token                     7 8  one per row and call; its
#                key and value are written to the slot of its position, then it
#                attends to the slots up to its own
#
# A linear layer passes on a state of fixed size in place of keys and values:
# that after the prefix, after the last token of each prompt, after each token.

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bct_jax.mesh import ROWS, axis_size, constrain
from bct_jax.models.architecture import Layer, ModelConfig
from bct_jax.models.attention import Prefix, Slots
from bct_jax.models.deltanet import State
from bct_jax.models.layers import Block, rope_angles
from bct_jax.models.modules import RMSNorm
from bct_jax.models.splash import Segments
from bct_jax.models.stack import (
  REMAT,
  by_kind,
  layer_of,
  layers_at,
  scan_layers,
)
from bct_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Decoder:
  """Runs one architecture, by pure functions of (params, arrays).

  Attributes:
    config: the architecture.
    dtype: of activations and matrix products. Norms, softmax, rotary angles and
      logits are float32 with any dtype.
    remat: what the backward pass recomputes (Chen et al. 2016, arXiv
      1604.06174): none, dots (all but matrix products) or full (each block).
    attention: the form of attention over whole rows, see attention.py.
    experts: what a mesh moves in a mixture: "weights" to the tokens, or
      "tokens" to their experts, see expert_exchange.py.
  """

  config: ModelConfig
  dtype: Any = jnp.float32
  remat: str = "full"
  attention: str = "xla"
  experts: str = "weights"

  def __post_init__(self):
    """Raises ValueError for a remat that is not in REMAT."""
    if self.remat not in REMAT:
      raise ValueError(f"remat {self.remat!r}: choose one of {list(REMAT)}")

  def block(self, mixer: str) -> Block:
    """Returns the Linen module of the blocks that have a mixer."""
    return Block(self.config, self.dtype, self.attention, mixer, self.experts)

  @property
  def _norm(self) -> RMSNorm:
    """Returns the Linen module of the norm behind the last block."""
    c = self.config
    return RMSNorm(c.norm_eps, c.norm_plus_one, c.norm_float32)

  def init(self, rng: jax.Array) -> PyTree:
    """Draws random float32 params; jax.eval_shape of it gives their shapes."""
    c = self.config
    rngs = jax.random.split(rng, c.num_layers + 2)
    x = jnp.zeros((1, 1, c.width), self.dtype)

    def init(mixer, key):
      first = jnp.zeros((1, 1), jnp.int32)
      angles = rope_angles(first, None, c.with_heads(mixer).head_dim)
      mask: Any = jnp.ones((1, 1, 1, 1), bool)
      if mixer == "deltanet":
        mask = Segments(jnp.ones((1, 1), jnp.int32))
      return self.block(mixer).init(key, x, angles, mask)["params"]

    layers = {}
    for mixer in c.mixers:
      drawn = jax.vmap(functools.partial(init, mixer))(rngs[2:])
      # Drawn for all layers, and kept for those that have the part.
      for name, part in drawn.items():
        layers[name] = layers_at(part, c.layers_of(name), c.num_layers)

    normal = nn.initializers.normal(0.02)
    params = {
      "embed": normal(rngs[0], (c.vocab_size, c.width), jnp.float32),
      "layers": layers,
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
    """Returns the final hidden states [B, T, D] of rows (see types.Model)."""
    return self.prefill(params, tokens, positions, segments)[0]

  def prefill(
    self,
    params: PyTree,
    tokens: jax.Array,
    positions: jax.Array,
    segments: jax.Array,
    prefix: Sequence[Prefix | State] | None = None,
    arms: jax.Array | None = None,
    ends: jax.Array | None = None,
  ) -> tuple[jax.Array, list[Any] | None]:
    """Runs whole rows, padded or packed.

    Args:
      params: stacked or `unstack`ed.
      tokens, positions, segments: [B, T]; segment 0 marks padding.
      prefix: per layer, keys and values of the S tokens that all segments begin
        with, or the state after them. They have the positions 0 to S - 1, and
        `positions` go on behind them. Only with unstacked params.
      arms: [B, T], whose adapter each token takes, if params hold several.
      ends: [A], places in B x T after which linear layers return their state.

    Returns:
      The final hidden states [B, T, D]; and with unstacked params, per layer,
      keys and values [B, T, K, H], or the state [A, ...] of a linear layer.
    """
    run = functools.partial(
      self._forward,
      *(params, tokens, positions),
      segments=segments,
      arms=arms,
      ends=ends,
    )
    if self.attention == "splash" and prefix is None:
      return run(self._masks(functools.partial(Segments, segments)))
    distance = positions[:, :, None] - positions[:, None, :]  # [B, T, T]
    visible = (
      (segments[:, :, None] == segments[:, None, :])
      & (segments[:, None, :] > 0)
      & (distance >= 0)
    )
    if prefix is not None:
      (length, *_) = (x.keys.shape[1] for x in prefix if isinstance(x, Prefix))
      to_prefix = positions[:, :, None] - jnp.arange(length)
      distance = jnp.concatenate([to_prefix, distance], axis=-1)  # [B, T, S+T]
      all_of_it = jnp.ones_like(to_prefix, bool)
      visible = jnp.concatenate([all_of_it, visible], axis=-1)
    return run(self._masks(_windowed(visible, distance)), past=prefix)

  def decode(
    self,
    params: PyTree,
    tokens: jax.Array,
    positions: jax.Array,
    past: Sequence[Slots | State],
    arms: jax.Array | None = None,
  ) -> tuple[jax.Array, Any]:
    """Runs one more token per row, and writes it to the slot of its position.

    Args:
      params: `unstack`ed.
      tokens, positions: [B]; slots before a row's position hold its past.
      past: per layer.
      arms: [B], see `prefill`.

    Returns:
      The final hidden states [B, D] and the new past.
    """
    (count, *_) = (x.keys.shape[-1] for x in past if isinstance(x, Slots))
    distance = positions[:, None, None] - jnp.arange(count)  # [B, 1, S]
    x, new_past = self._forward(
      params,
      tokens[:, None],
      positions[:, None],
      self._masks(_windowed(distance >= 0, distance)),
      past=past,
      at=positions,
      arms=None if arms is None else arms[:, None],
    )
    return x[:, 0], new_past

  def unstack(self, params: PyTree) -> PyTree:
    """Returns the params with `layers` as a list, for decoding."""
    layers = [
      layer_of(self.config, params["layers"], i)
      for i in range(self.config.num_layers)
    ]
    return {**params, "layers": layers}

  def logits(self, params, hidden):  # [..., D] -> [..., V]
    """Computes scores over the vocabulary in float32 (see types.Model)."""
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

  def head_blocks(
    self, params: PyTree, max_ids: int
  ) -> tuple[PyTree, np.ndarray]:
    """Splits the head into blocks of the vocabulary, for a scan over them.

    Args:
      params: of the model.
      max_ids: the most ids of a block on a device.

    Returns:
      Params for `logits`, with a first axis of blocks, spread as the head is;
      and the ids [blocks, ids of a block], -1 where a block is filled up.
    """
    # Each device on tensor splits its own ids, so nothing changes places. With
    # 8 ids on 2 devices, and blocks of 3:
    #
    #   device    0: 0 1 2 3       1: 4 5 6 7
    #   block 0      0 1              4 5
    #   block 1      2 3              6 7
    tied = self.config.tied
    name, axis = ("embed", 0) if tied else ("head", 1)
    parts = axis_size("tensor")
    share = self.config.vocab_size // parts  # ids of a device
    count = -(-share // max_ids)
    size = -(-share // count)
    pad = count * size - share
    ids = np.arange(parts * share, dtype=np.int32).reshape(parts, share)
    ids = np.pad(ids, [(0, 0), (0, pad)], constant_values=-1)
    ids = ids.reshape(parts, count, size).swapaxes(0, 1)

    table = params[name].astype(self.dtype)
    width = table.shape[1 - axis]
    if tied:  # [V, D]
      table = jnp.pad(
        table.reshape(parts, share, width), [(0, 0), (0, pad), (0, 0)]
      ).reshape(parts, count, size, width)
      table = table.swapaxes(0, 1).reshape(count, parts * size, width)
      table = constrain(table, None, "tensor", "fsdp")
    else:  # [D, V]
      table = jnp.pad(
        table.reshape(width, parts, share), [(0, 0), (0, 0), (0, pad)]
      ).reshape(width, parts, count, size)
      table = table.transpose(2, 0, 1, 3).reshape(count, width, parts * size)
      table = constrain(table, None, "fsdp", "tensor")
    return {name: table}, ids.reshape(count, parts * size)

  def gather_block(self, block: PyTree) -> PyTree:
    """Brings the whole width of a block of `head_blocks` to every device."""
    if self.config.tied:
      return {"embed": constrain(block["embed"], "tensor", None)}
    return {"head": constrain(block["head"], None, "tensor")}

  def _embed(self, params, tokens):  # [B, T] -> [B, T, D]
    """Looks up the embeddings of tokens."""
    table = params["embed"].astype(self.dtype)
    if isinstance(params["layers"], (list, tuple)):  # no fsdp, see `unstack`
      x = table[tokens]
    else:
      # Every device looks up its own part of the width for the rows of all.
      # These parts then change places. So the table itself is not gathered, nor
      # is its gradient summed over devices. Without the constraints XLA gives
      # every device all rows of the result.
      x = table[constrain(tokens, "data", None)]
      x = constrain(x, "data", None, "fsdp")
    if self.config.embed_scale != 1:
      x *= jnp.asarray(self.config.embed_scale, self.dtype)
    return constrain(x, ROWS, None, None)

  def _masks(self, make: Callable[[int | None], Any]) -> Callable[..., Any]:
    """Makes the masks of all windows; returns a look-up by layer."""
    return by_kind(self.config.layers, lambda layer: layer.window, make)

  def _forward(
    self,
    params,
    tokens,
    positions,
    mask_of,
    segments=None,
    past=None,
    at=None,
    arms=None,
    ends=None,
  ):
    """Runs all blocks.

    Args:
      params: stacked or `unstack`ed.
      tokens, positions: [B, T].
      mask_of: gives the mask of an attending layer, by its number.
      segments: [B, T], for linear layers; None is one more token.
      past: per layer, a Prefix or Slots, or a State of a linear layer.
      at: [B], the slot to which a token is written, with Slots.
      arms: [B, T] or None.
      ends: see `prefill`.

    Returns:
      The final hidden states [B, T, D], and with unstacked params what
      `prefill` and `decode` return of each layer.
    """
    c = self.config
    angles_of = by_kind(
      c.layers,
      lambda layer: (layer.rope, c.with_heads(layer.mixer).head_dim),
      lambda rope: rope_angles(positions, *rope),
    )
    x = self._embed(params, tokens)

    def run(kind: Layer, x, layer, i, past=None):
      if kind.linear:
        mask = None if segments is None else Segments(segments)
        args = (None, mask, past, ends, arms)
      else:
        args = (angles_of(kind, i), mask_of(kind, i), past, at, arms)
      return self.block(kind.mixer).apply({"params": layer}, x, *args)

    layers = params["layers"]
    if isinstance(layers, (list, tuple)):
      out, pasts = [], past or [None] * len(layers)
      for i, layer in enumerate(layers):
        x, kept = run(c.layers[i], x, layer, i, pasts[i])
        out.append(kept)
    else:
      gathers = c.num_experts > 0 and self.experts == "weights"
      args = c, self.dtype, self.remat, gathers
      x = scan_layers(run, x, layers, *args)
      out = None
    x: Any = self._norm.apply({"params": params["norm"]}, x)
    return x, out


def _windowed(
  visible: jax.Array, distance: jax.Array
) -> Callable[[int | None], jax.Array]:
  """Returns what makes the mask [B, 1, T, keys] of a window.

  Args:
    visible: [B, T, keys], whether a query may see a key without a window.
    distance: [B, T, keys], positions from a key to a query.
  """

  def make(window):
    near = visible if window is None else visible & (distance < window)
    return near[:, None]

  return make
