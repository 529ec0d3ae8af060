"""Defines the array types of all modules, and the letters of shapes.

Shapes are written as comments, `# [B, T, D]`, with these letters:

    B rows of a batch        V vocabulary           L layers
    T tokens of a row        D model width          F width of the MLP
    P tokens of a prompt     N query heads          K key/value heads
    C tokens of a completion H width of one head    S slots of the KV cache
    R trained positions kept per row (`Batch.num_trained`)
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from flax import struct

PyTree = Any


class Mean(NamedTuple):
  """Holds a mean that is not divided yet, so that it adds across microbatches.

  `weight` must depend on the batch alone, never on the parameters.
  """

  total: jax.Array  # []
  weight: jax.Array  # []

  def value(self) -> jax.Array:
    """Returns total / weight, and 0 where the weight is 0."""
    safe = jax.numpy.where(self.weight > 0, self.weight, 1)
    return jax.numpy.where(self.weight > 0, self.total / safe, 0)


@struct.dataclass
class Batch:
  """Holds a global batch of token rows; rows are sharded over (data, fsdp)."""

  tokens: jax.Array  # [B, T] int32
  targets: jax.Array  # [B, T] int32, the next token, shifted on the host
  weights: jax.Array  # [B, T] float32, 0 = not trained; never made from ids
  positions: jax.Array  # [B, T] int32, restart in each segment
  segments: jax.Array  # [B, T] int32, 0 = padding
  # What an objective needs besides: arrays [B, ...], or batches of as many rows
  # whose segments belong to those here ("rejected").
  extras: dict[str, Any] = struct.field(default_factory=dict)
  # Upper bound of the positions with weight in any row (R); the head runs on
  # that many positions of each row and nowhere else.
  num_trained: int = struct.field(pytree_node=False, default=0)


@struct.dataclass
class TrainState:
  """Holds everything that a training step changes: arrays, or their shapes."""

  step: Any  # [] int32, updates done
  params: PyTree  # trained leaves, float32
  opt_state: PyTree
  rng: Any  # [2] uint32 root key; step keys are folded in from it
  ema: PyTree = None  # float32, average of the params, if one is kept


class Rows(NamedTuple):
  """Holds the rows of a batch on the host, before `mesh.put_batch`."""

  tokens: np.ndarray  # [B, T] int32
  targets: np.ndarray  # [B, T] int32
  weights: np.ndarray  # [B, T] float32
  positions: np.ndarray  # [B, T] int32
  segments: np.ndarray  # [B, T] int32
  num_trained: int
  extras: Mapping[str, Any] = {}  # arrays [B, ...] or Rows, see Batch


class Model(Protocol):
  """Describes what objectives and the sampler need of a language model."""

  def hidden(
    self,
    params: PyTree,
    tokens: jax.Array,  # [B, T]
    positions: jax.Array,  # [B, T]
    segments: jax.Array,  # [B, T]
  ) -> jax.Array:  # [B, T, D]
    """Computes the hidden states after the last norm, in the compute dtype."""
    ...

  def logits(self, params: PyTree, hidden: jax.Array) -> jax.Array:
    """Computes scores over the vocabulary, [..., D] -> [..., V] float32."""
    ...

  def head_blocks(
    self, params: PyTree, max_ids: int
  ) -> tuple[PyTree, np.ndarray]:
    """Cuts the head into blocks of at most `max_ids` ids on a device.

    Returns:
      The blocks, and the ids that each of them scores.
    """
    ...

  def gather_block(self, block: PyTree) -> PyTree:
    """Gathers one block of the head over fsdp; `logits` takes it as params."""
    ...


class Objective(Protocol):
  """Describes a training objective: a sum and its weight, never an average.

  An objective with `uses_reference` is also called with `reference=`, the
  params of the organism (see `objectives/base.py`).
  """

  def __call__(
    self, params: PyTree, batch: Batch, rng: jax.Array, model: Model
  ) -> tuple[Mean, dict[str, Mean]]:
    """Returns the loss as a Mean, and further Means to log."""
    ...


@dataclasses.dataclass(frozen=True)
class Completion:
  """Holds one sampled completion on the host.

  Attributes:
    tokens: ids up to and with the stop id.
    logprobs: log-probability in nats of each, untempered.
    stopped: False if it was cut at the limit of new tokens.
  """

  tokens: tuple[int, ...]
  logprobs: tuple[float, ...]
  stopped: bool
