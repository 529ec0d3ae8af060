"""Computes log-probabilities of targets, in float32, at trained positions.

The logits of a whole batch, [B, T, V], are the largest array of a train step by
far. Two things keep them from existing: the head runs at trained positions only
([B, R, D]), and only over a chunk of positions, or a block of ids, at a time.
"""

# The head of a batch with R = 160 trained positions and CHUNK = 64:
#
#   one device     positions  | 0 .. 63 | 64 .. 127 | 128 .. 159 + filling |
#                  forward    logits [B, 64, V] -> log p [B, 64], dropped
#                  backward   the same again, one chunk after the other
#   rows spread    ids        | 0 .. n | n .. 2n | ... | V |
#   over devices   each block of the head is gathered once for all R positions;
#                  the sum over ids grows from block to block

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bct_jax.mesh import ROWS, axis_size, constrain
from bct_jax.types import Batch, Model, PyTree

# Trained positions of a row that go through the head at a time. The largest
# array is [B, CHUNK, V] float32 instead of [B, T, V].
CHUNK = 64
# Where the head runs by blocks of ids: the most logits of a device at a time,
# and the fewest ids of a block.
LOGITS = 2**24
_LEAST = 1024

Head = Callable[[Model, PyTree, jax.Array, jax.Array], Any]


# Log-probabilities from whole logits are made here and nowhere else. Two places
# below differ for a reason: `_by_blocks` never has all logits of a position at
# once, and `reference_kl` needs the log-probabilities of all ids.
def logprobs_of(
  logits: jax.Array,  # [..., V] float32
  targets: jax.Array,  # [...] int32
) -> jax.Array:  # [...] float32
  """Returns log softmax(logits) at each target, in nats."""
  index = targets[..., None]
  target_logits = jnp.take_along_axis(logits, index, axis=-1)[..., 0]
  return target_logits - jax.nn.logsumexp(logits, axis=-1)


def target_logprobs(
  model: Model,
  params: PyTree,
  hidden: jax.Array,  # [..., D]
  targets: jax.Array,  # [...] int32
) -> jax.Array:  # [...] float32
  """Returns log p(target) in nats at every position of `hidden`."""
  return logprobs_of(model.logits(params, hidden), targets)


def trained_positions(batch: Batch) -> jax.Array:  # [B, R] int32
  """Returns `num_trained` positions of each row, trained ones first.

  Trained positions keep their order. Rows with fewer of them are filled up with
  positions of weight 0.
  """
  untrained = batch.weights == 0  # [B, T]
  order = jnp.argsort(untrained, axis=1, stable=True)
  return order[:, : batch.num_trained]


def trained_hidden(
  model: Model, params: PyTree, batch: Batch
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Runs a batch and picks its trained positions.

  Returns:
    Hidden states [B, R, D], targets, loss weights and segments [B, R].
  """
  hidden = model.hidden(params, batch.tokens, batch.positions, batch.segments)
  index = trained_positions(batch)
  hidden = jnp.take_along_axis(hidden, index[..., None], axis=1)  # [B, R, D]

  def pick(x: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index, axis=1)

  return hidden, pick(batch.targets), pick(batch.weights), pick(batch.segments)


def in_chunks(
  head: Callable[..., Any], arrays: tuple[jax.Array, ...], chunk: int = CHUNK
) -> Any:
  """Runs `head` on `chunk` positions of each row at a time.

  A chunk is recomputed in the backward pass. So the arrays over the vocabulary
  that `head` makes never exist for the whole batch.

  Args:
    head: arrays [B, chunk, ...] -> arrays [B, chunk].
    arrays: [B, R, ...].
    chunk: positions of a row at a time.

  Returns:
    The arrays of `head`, [B, R].
  """
  rows, count = arrays[0].shape[:2]
  chunk = min(chunk, count)
  num_chunks = -(-count // chunk)
  pad = num_chunks * chunk - count

  def split(x):  # [B, R, ...] -> [num_chunks, B, chunk, ...]
    x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(rows, num_chunks, chunk, *x.shape[2:]).swapaxes(0, 1)

  def join(x):  # [num_chunks, B, chunk] -> [B, R]
    return x.swapaxes(0, 1).reshape(rows, -1)[:, :count]

  if num_chunks == 1:
    return head(*arrays)
  run_chunk = jax.checkpoint(head, prevent_cse=False)
  out = jax.lax.map(lambda x: run_chunk(*x), tuple(map(split, arrays)))
  return jax.tree.map(join, out)


def row_logprobs(
  model: Model,
  params: PyTree,
  hidden: jax.Array,  # [B, R, D]
  targets: jax.Array,  # [B, R] int32
  chunk: int = CHUNK,
) -> jax.Array:  # [B, R] float32
  """Returns log p(target) in nats, without logits of all positions and ids.

  On one device the head runs on some positions at a time. Where rows are spread
  over devices it runs on some ids at a time: a device then gathers each block
  of the head once, and each block of its gradient is summed over devices once.
  By positions, every chunk would gather the whole head and sum its gradient.
  """
  shards = axis_size("data") * axis_size("fsdp")
  if shards > 1:
    return _by_blocks(model, params, hidden, targets, shards)

  def run_head(h, t):
    return target_logprobs(model, params, h, t)

  return in_chunks(run_head, (hidden, targets), chunk)


def _by_blocks(model, params, hidden, targets, shards):
  """Returns log p(target), [B, R], from the logits of one block at a time.

  It is the online softmax of Milakov and Gimelshein 2018 (arXiv 1805.02867):
  the sum over ids grows from block to block, and is scaled anew when a block
  has a higher logit than all before it.
  """
  rows, count = targets.shape
  positions = -(-rows // shards) * count  # of a device
  size = max(_LEAST, LOGITS // positions // _LEAST * _LEAST)
  blocks, ids = model.head_blocks(params, size)
  # The gradient of `wide`, a sum over blocks, is then summed in float32.
  wide = hidden.astype(jnp.float32)

  def add_block(carry, xs):
    highest, total, target_logits = carry
    block, ids = xs
    block = model.gather_block(block)
    h = constrain(wide.astype(hidden.dtype), ROWS, None, None)
    logits = model.logits(block, h)  # [B, R, ids] float32
    logits = jnp.where(ids >= 0, logits, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    top = jnp.maximum(highest, top)
    total *= jnp.exp(highest - top)
    total += jnp.sum(jnp.exp(logits - top[..., None]), axis=-1)
    is_target = ids == targets[..., None]
    target_logits += jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
    return (top, total, target_logits), None

  # Not -inf: the difference of two of them is not a number.
  lowest = jnp.full((rows, count), jnp.finfo(jnp.float32).min)
  zero = jnp.zeros((rows, count), jnp.float32)
  add_block = jax.checkpoint(add_block, prevent_cse=False)
  (top, total, target_logits), _ = jax.lax.scan(
    add_block, (lowest, zero, zero), (blocks, jnp.asarray(ids))
  )
  return target_logits - top - jnp.log(total)


def at_trained(
  head: Head, model: Model, params: PyTree, batch: Batch, chunk: int = CHUNK
) -> tuple[Any, jax.Array]:
  """Runs `head` at the trained positions of a batch, and nowhere else.

  Args:
    head: (model, params, hidden [..., D], targets [...]) -> arrays [...].
    model, params, batch: what to run.
    chunk: positions of a row at a time, see `in_chunks`.

  Returns:
    The arrays of `head`, [B, R] each, and the loss weights [B, R].
  """
  hidden, targets, weights, _ = trained_hidden(model, params, batch)

  def run_head(h, t):
    return head(model, params, h, t)

  return in_chunks(run_head, (hidden, targets), chunk), weights


def token_logprobs(
  model: Model, params: PyTree, batch: Batch, chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:  # [B, R] float32, [B, R] float32
  """Returns log p(target | prefix) at the trained positions of a batch.

  Returns:
    Log-probabilities in nats, and the loss weight of each. Weight 0 marks the
    filling of rows that train fewer than R positions.
  """
  hidden, targets, weights, _ = trained_hidden(model, params, batch)
  return row_logprobs(model, params, hidden, targets, chunk), weights


def sequence_logprobs(
  model: Model, params: PyTree, batch: Batch, segments: int
) -> tuple[jax.Array, jax.Array]:  # [B, S] float32, [B, S] float32
  """Returns log p(completion | prompt) of every segment of every row.

  Args:
    model, params, batch: what to run.
    segments: S, the most segments that a row has.

  Returns:
    Sums in nats over the trained positions of a segment, whatever their weight;
    and the largest weight in the segment, 0 for a segment that a row lacks.
  """
  hidden, targets, weights, segment_of = trained_hidden(model, params, batch)

  logprobs = row_logprobs(model, params, hidden, targets)
  in_segment = segment_of[..., None] == 1 + jnp.arange(segments)  # [B, R, S]
  in_segment &= (weights > 0)[..., None]
  sums = jnp.sum(jnp.where(in_segment, logprobs[..., None], 0), axis=1)
  return sums, jnp.max(jnp.where(in_segment, weights[..., None], 0), axis=1)


def reference_kl(
  model: Model,
  params: PyTree,
  reference: PyTree,
  batch: Batch,
  reference_batch: Batch,
  forward: bool,
  chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # [B, R] float32 each
  """Computes the divergence of two models at the trained positions.

    forward  KL(reference || model) = sum over ids of  q (log q - log p)
    reverse  KL(model || reference) = sum over ids of  p (log p - log q)

  with p of the model and q of the reference. The sums are over the whole
  vocabulary, for a chunk of positions at a time.

  Args:
    model: the architecture of both.
    params: of the model; the gradient is theirs.
    reference: params of the reference; they have no gradient.
    batch: what the model runs on.
    reference_batch: what the reference runs on: `batch`, or a batch with other
      prompts before the same completions.
    forward: the direction.
    chunk: positions of a row at a time.

  Returns:
    The divergences and the model's log p(target), in nats, and the loss
    weights.
  """
  hidden, targets, weights, _ = trained_hidden(model, params, batch)
  reference_hidden, *_ = trained_hidden(
    model, jax.lax.stop_gradient(reference), reference_batch
  )

  def compare(hidden, reference_hidden, targets):
    p = jax.nn.log_softmax(model.logits(params, hidden))
    q = jax.nn.log_softmax(model.logits(reference, reference_hidden))
    a, b = (q, p) if forward else (p, q)
    logprobs = jnp.take_along_axis(p, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.exp(a) * (a - b), axis=-1), logprobs

  arrays = (hidden, reference_hidden, targets)
  kl, logprobs = in_chunks(compare, arrays, chunk)
  return kl, logprobs, weights
