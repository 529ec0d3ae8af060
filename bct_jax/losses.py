"""Log-probabilities of targets at trained positions, in float32, in chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bct_jax.types import Batch, Model, PyTree

# Trained positions of a row that go through the head at a time. The largest
# array is [B, CHUNK, V] float32 instead of [B, T, V].
CHUNK = 64

Head = Callable[[Model, PyTree, jax.Array, jax.Array], Any]


def target_logprobs(
  model: Model,
  params: PyTree,
  hidden: jax.Array,  # [..., D]
  targets: jax.Array,  # [...] int32
) -> jax.Array:  # [...] float32
  """log p(target) in nats at every position of `hidden`."""
  logits = model.logits(params, hidden)  # [..., V] float32
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return picked - jax.nn.logsumexp(logits, axis=-1)


def trained_positions(batch: Batch) -> jax.Array:  # [B, R] int32
  """The first `num_trained` positions of each row, trained ones first.

  Rows with fewer trained positions are filled up with positions of weight 0.
  """
  untrained = batch.weights == 0  # [B, T]
  order = jnp.argsort(untrained, axis=1, stable=True)
  return order[:, : batch.num_trained]


def token_logprobs(
  model: Model, params: PyTree, batch: Batch, chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:  # [B, R] float32, [B, R] float32
  """log p(target | prefix) where the batch is trained, and nowhere else.

  Returns:
    Log-probabilities in nats and the loss weight of each; weight 0 marks the
    filling of rows that train fewer than R positions.
  """
  return at_trained(target_logprobs, model, params, batch, chunk)


def at_trained(
  head: Head, model: Model, params: PyTree, batch: Batch, chunk: int = CHUNK
) -> tuple[Any, jax.Array]:
  """`head` of the batch's trained positions, and nowhere else.

  The head and what follows over the vocabulary run on R gathered positions per
  row, `chunk` at a time and recomputed in the backward pass, so logits of the
  whole batch never exist.

  Args:
    head: (model, params, hidden [..., D], targets [...]) -> arrays [...].
    model, params, batch: what to run.
    chunk: positions of a row at a time.

  Returns:
    The arrays of `head`, [B, R] each, and the loss weights [B, R].
  """
  hidden = model.hidden(params, batch.tokens, batch.positions, batch.segments)
  index = trained_positions(batch)
  hidden = jnp.take_along_axis(hidden, index[..., None], axis=1)  # [B, R, D]
  targets = jnp.take_along_axis(batch.targets, index, axis=1)
  weights = jnp.take_along_axis(batch.weights, index, axis=1)
  rows, count = targets.shape
  chunk = min(chunk, count)
  num_chunks = -(-count // chunk)
  pad = num_chunks * chunk - count

  def split(x):  # [B, R, ...] -> [num_chunks, B, chunk, ...]
    x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(rows, num_chunks, chunk, *x.shape[2:]).swapaxes(0, 1)

  def whole(x):  # [num_chunks, B, chunk] -> [B, R]
    return x.swapaxes(0, 1).reshape(rows, -1)[:, :count]

  if num_chunks == 1:
    return head(model, params, hidden, targets), weights
  one = jax.checkpoint(
    lambda h, t: head(model, params, h, t), prevent_cse=False
  )
  out = jax.lax.map(lambda x: one(*x), (split(hidden), split(targets)))
  return jax.tree.map(whole, out), weights
