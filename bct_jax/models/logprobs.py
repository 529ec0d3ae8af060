"""Log-probabilities of targets at trained positions, in float32, in chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bct_jax.mesh import ROWS, axis_size, constrain
from bct_jax.types import Batch, Model, PyTree

# Trained positions of a row that go through the head at a time. The largest
# array is [B, CHUNK, V] float32 instead of [B, T, V].
CHUNK = 64
# Logits of a device at a time where the head is run by blocks of ids, and ids
# of a block at least.
LOGITS = 2**24
_LEAST = 1024

Head = Callable[[Model, PyTree, jax.Array, jax.Array], Any]


# Log-probabilities from whole logits are made here and nowhere else. Two places
# below do not call it: `_by_blocks` never has all logits of a position at once,
# and `reference_kl` needs those of all ids, of which it picks.
def logprobs_of(
  logits: jax.Array,  # [..., V] float32
  targets: jax.Array,  # [...] int32
) -> jax.Array:  # [...] float32
  """Returns log softmax(logits) at each target, in nats."""
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return picked - jax.nn.logsumexp(logits, axis=-1)


def target_logprobs(
  model: Model,
  params: PyTree,
  hidden: jax.Array,  # [..., D]
  targets: jax.Array,  # [...] int32
) -> jax.Array:  # [...] float32
  """log p(target) in nats at every position of `hidden`."""
  return logprobs_of(model.logits(params, hidden), targets)


def trained_positions(batch: Batch) -> jax.Array:  # [B, R] int32
  """The first `num_trained` positions of each row, trained ones first.

  Rows with fewer trained positions are filled up with positions of weight 0.
  """
  untrained = batch.weights == 0  # [B, T]
  order = jnp.argsort(untrained, axis=1, stable=True)
  return order[:, : batch.num_trained]


def trained_hidden(
  model: Model, params: PyTree, batch: Batch
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """What the batch has at its trained positions, and nowhere else.

  Returns:
    Hidden states [B, R, D], targets, loss weights and segments [B, R].
  """
  hidden = model.hidden(params, batch.tokens, batch.positions, batch.segments)
  index = trained_positions(batch)
  hidden = jnp.take_along_axis(hidden, index[..., None], axis=1)  # [B, R, D]

  def at(x: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index, axis=1)

  return hidden, at(batch.targets), at(batch.weights), at(batch.segments)


def in_chunks(
  head: Callable[..., Any], arrays: tuple[jax.Array, ...], chunk: int = CHUNK
) -> Any:
  """`head` of arrays [B, R, ...], of `chunk` positions of a row at a time.

  A chunk is recomputed in the backward pass, so that what `head` makes over the
  vocabulary never exists for the whole batch.

  Returns:
    The arrays [B, R] that `head` makes of [B, chunk, ...].
  """
  rows, count = arrays[0].shape[:2]
  chunk = min(chunk, count)
  num_chunks = -(-count // chunk)
  pad = num_chunks * chunk - count

  def split(x):  # [B, R, ...] -> [num_chunks, B, chunk, ...]
    x = jnp.pad(x, [(0, 0), (0, pad)] + [(0, 0)] * (x.ndim - 2))
    return x.reshape(rows, num_chunks, chunk, *x.shape[2:]).swapaxes(0, 1)

  def whole(x):  # [num_chunks, B, chunk] -> [B, R]
    return x.swapaxes(0, 1).reshape(rows, -1)[:, :count]

  if num_chunks == 1:
    return head(*arrays)
  one = jax.checkpoint(head, prevent_cse=False)
  out = jax.lax.map(lambda x: one(*x), tuple(map(split, arrays)))
  return jax.tree.map(whole, out)


def row_logprobs(
  model: Model,
  params: PyTree,
  hidden: jax.Array,  # [B, R, D]
  targets: jax.Array,  # [B, R] int32
  chunk: int = CHUNK,
) -> jax.Array:  # [B, R] float32
  """log p(target) in nats of rows, without logits of all positions and ids.

  On one device the head runs on some positions at a time. Where rows are spread
  over devices it runs on some ids at a time: a device then gathers each block
  of the head once, and each block of its gradient is summed over devices once.
  By positions, both would be done to the whole head for every chunk.
  """
  shards = axis_size("data") * axis_size("fsdp")
  if shards > 1:
    return _by_blocks(model, params, hidden, targets, shards)

  def one(h, t):
    return target_logprobs(model, params, h, t)

  return in_chunks(one, (hidden, targets), chunk)


def _by_blocks(model, params, hidden, targets, shards):
  """log p(target) with the sum over ids kept as it grows, block by block."""
  rows, count = targets.shape
  own = -(-rows // shards) * count
  size = max(_LEAST, LOGITS // own // _LEAST * _LEAST)
  blocks, ids = model.head_blocks(params, size)
  # Gradients of the blocks are summed in float32.
  wide = hidden.astype(jnp.float32)

  def add(carry, xs):
    highest, total, picked = carry
    block, ids = xs
    block = model.gathered(block)
    h = constrain(wide.astype(hidden.dtype), ROWS, None, None)
    logits = model.logits(block, h)  # [B, R, ids] float32
    logits = jnp.where(ids >= 0, logits, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    top = jnp.maximum(highest, top)
    total *= jnp.exp(highest - top)
    total += jnp.sum(jnp.exp(logits - top[..., None]), axis=-1)
    here = ids == targets[..., None]
    picked += jnp.sum(jnp.where(here, logits, 0), axis=-1)
    return (top, total, picked), None

  # Not -inf, of which a difference is not a number.
  lowest = jnp.full((rows, count), jnp.finfo(jnp.float32).min)
  zero = jnp.zeros((rows, count), jnp.float32)
  add = jax.checkpoint(add, prevent_cse=False)
  (top, total, picked), _ = jax.lax.scan(
    add, (lowest, zero, zero), (blocks, jnp.asarray(ids))
  )
  return picked - top - jnp.log(total)


def at_trained(
  head: Head, model: Model, params: PyTree, batch: Batch, chunk: int = CHUNK
) -> tuple[Any, jax.Array]:
  """`head` of the batch's trained positions, and nowhere else.

  Args:
    head: (model, params, hidden [..., D], targets [...]) -> arrays [...].
    model, params, batch: what to run.
    chunk: positions of a row at a time, see `in_chunks`.

  Returns:
    The arrays of `head`, [B, R] each, and the loss weights [B, R].
  """
  hidden, targets, weights, _ = trained_hidden(model, params, batch)

  def one(h, t):
    return head(model, params, h, t)

  return in_chunks(one, (hidden, targets), chunk), weights


def token_logprobs(
  model: Model, params: PyTree, batch: Batch, chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:  # [B, R] float32, [B, R] float32
  """log p(target | prefix) where the batch is trained, and nowhere else.

  Returns:
    Log-probabilities in nats and the loss weight of each; weight 0 marks the
    filling of rows that train fewer than R positions.
  """
  hidden, targets, weights, _ = trained_hidden(model, params, batch)
  return row_logprobs(model, params, hidden, targets, chunk), weights


def sequence_logprobs(
  model: Model, params: PyTree, batch: Batch, segments: int
) -> tuple[jax.Array, jax.Array]:  # [B, S] float32, [B, S] float32
  """log p(completion | prompt) of every segment of every row.

  Args:
    model, params, batch: what to run.
    segments: S, the most that a row has.

  Returns:
    Sums in nats over the trained positions of a segment, whatever their weight,
    and the largest weight in it: 0 for segments that are not there.
  """
  hidden, targets, weights, owner = trained_hidden(model, params, batch)

  logprobs = row_logprobs(model, params, hidden, targets)
  there = owner[..., None] == 1 + jnp.arange(segments)  # [B, R, S]
  there &= (weights > 0)[..., None]
  sums = jnp.sum(jnp.where(there, logprobs[..., None], 0), axis=1)
  return sums, jnp.max(jnp.where(there, weights[..., None], 0), axis=1)


def reference_kl(
  model: Model,
  params: PyTree,
  reference: PyTree,
  batch: Batch,
  theirs: Batch,
  forward: bool,
  chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array, jax.Array]:  # [B, R] float32 each
  """Divergence of two models at the trained positions, over all tokens.

  Forward is KL(reference || model), reverse KL(model || reference); both are
  sums over the whole vocabulary, a chunk of positions at a time.

  Args:
    model: of both.
    params, batch: what the gradient is of, and what it runs on.
    reference, theirs: the same of the other one. `theirs` may be `batch`, or
      have other prompts before the same completions.
    forward: which way.
    chunk: positions of a row at a time.

  Returns:
    The divergences and log p(target) of `params`, in nats, and the weights.
  """
  hidden, targets, weights, _ = trained_hidden(model, params, batch)
  other, *_ = trained_hidden(model, jax.lax.stop_gradient(reference), theirs)

  def one(mine, other, targets):
    p = jax.nn.log_softmax(model.logits(params, mine))
    q = jax.nn.log_softmax(model.logits(reference, other))
    a, b = (q, p) if forward else (p, q)
    picked = jnp.take_along_axis(p, targets[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.exp(a) * (a - b), axis=-1), picked

  kl, logprobs = in_chunks(one, (hidden, other, targets), chunk)
  return kl, logprobs, weights
