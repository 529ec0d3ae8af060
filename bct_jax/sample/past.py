"""Holds what each row keeps of the past: slots of a layer, or its state.

A layer with attention has slots for keys and values, one for each position. A
linear layer has a state of fixed size, see models/deltanet.py.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax.mesh import ROWS
from bct_jax.models.architecture import Layer, ModelConfig
from bct_jax.models.attention import POSITIONS, Prefix, Slots, as_slots
from bct_jax.models.decoder import Decoder
from bct_jax.models.deltanet import State, empty_state

Past = list[Slots | State]  # per layer


def past_shardings(config: ModelConfig, mesh: Mesh) -> list[NamedSharding]:
  """Returns how the past of each layer is spread: rows, and heads over tensor.

  Heads of keys and values that do not divide are whole on every device.
  """

  def spread(layer: Layer) -> NamedSharding:
    heads = config.with_heads(layer.mixer).num_kv_heads
    divides = layer.linear or heads % mesh.shape["tensor"] == 0
    return NamedSharding(mesh, P(ROWS, "tensor" if divides else None))

  return [spread(layer) for layer in config.layers]


def empty_past(model: Decoder, rows: int, slots: int, dtype: Any) -> Past:
  """Makes the past of free rows.

  Args:
    model: the decoder.
    rows: how many.
    slots: positions of each.
    dtype: of keys and values in slots.
  """
  config = model.config

  def empty(layer: Layer) -> Slots | State:
    if layer.linear:
      assert config.delta is not None
      return empty_state(config.delta, rows, model.dtype)
    c = config.with_heads(layer.mixer)
    shape = (rows, slots, c.num_kv_heads, c.head_dim)
    kv = jax.ShapeDtypeStruct(shape, "float32")
    shapes = jax.eval_shape(lambda kv: as_slots(kv, kv, dtype), kv)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  return [empty(layer) for layer in config.layers]


def as_prefix(kept: Sequence[Any]) -> list[Prefix | State]:
  """Makes what `Decoder.prefill` kept of a row what other rows begin with."""
  return [x if isinstance(x, State) else Prefix(*x) for x in kept]


def admit_past(
  past: Past,
  kept: Sequence[Any],
  prefix: Sequence[Prefix | State] | None,
  assignment: Any,
  dtype: Any,
) -> Past:
  """Copies the past of prefilled rows into that of slots.

  Nothing is left of the row that a slot had before: what it wrote to later
  positions is not seen until it is written anew, and a state is replaced.

  Args:
    past: of all slots.
    kept: per layer, keys and values [r, T, K, H] of packed prompts, or the
      State [A, ...] after each row's prompt.
    prefix: of each arm, what all prompts begin with; part of a State already.
    assignment: a SlotAssignment.
    dtype: of keys and values in slots.
  """

  def put_state(old: jax.Array, new: jax.Array) -> jax.Array:
    new = new[assignment.index].astype(old.dtype)
    return old.at[assignment.slot].set(new, mode="drop")

  def put_slots(slots: Slots, kv, begin) -> Slots:
    # [r, T, K, H] -> [a, Q, K, H]
    k, v = (x.reshape(-1, *x.shape[2:])[assignment.source] for x in kv)
    if begin is not None:
      k = jnp.concatenate([begin.keys[assignment.arm], k], axis=1)
      v = jnp.concatenate([begin.values[assignment.arm], v], axis=1)

    def one(old, new, axis) -> Any:
      if old is None:
        return None
      part = (assignment.slot, *[slice(None)] * (axis - 1), slice(k.shape[1]))
      return old.at[part].set(new, mode="drop")

    new = as_slots(k, v, dtype)
    return Slots(*map(one, slots, new, POSITIONS))

  begins = prefix or [None] * len(past)
  return [
    jax.tree.map(put_state, slots, x)
    if isinstance(slots, State)
    else put_slots(slots, x, begin)
    for slots, x, begin in zip(past, kept, begins, strict=True)
  ]
