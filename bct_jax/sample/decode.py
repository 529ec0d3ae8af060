"""Decodes on the devices, in slots that hold a row each until it has ended.

`prefill` runs prompts, each once for all the samples of it; `admit` puts some
of the prefilled rows into free slots; `advance` decodes all slots until enough
of them are free again. A row's numbers do not depend on its slot, on its
neighbours or on when it was admitted: its keys lie at its own positions, and
its random keys are made from (seed, row id, position). On a CPU a step costs
what its slots cost, so `shrink` leaves out free slots when no row waits for
one.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax import mesh as meshes
from bct_jax.config import SamplingConfig
from bct_jax.models.attention import Prefix
from bct_jax.models.decoder import Decoder
from bct_jax.models.deltanet import State
from bct_jax.sample.next_token import choose_token
from bct_jax.sample.past import (
  admit_past,
  as_prefix,
  empty_past,
  past_shardings,
)
from bct_jax.types import PyTree


@struct.dataclass
class DecodeState:
  """Holds all slots; a slot that is not live is free."""

  past: Any  # per layer: Slots, or the State of a linear one
  token: Any  # [B] int32, the newest, whose keys are not in `past` yet
  position: Any  # [B] int32, of the newest token
  key: Any  # [B, 2] uint32, of the row
  arm: Any  # [B] int32, whose adapter it has, if the params hold several
  limit: Any  # [B] int32, new tokens that the row may have
  live: Any  # [B] bool
  tokens: Any  # [B, C] int32, sampled so far
  logprobs: Any  # [B, C] float32
  lengths: Any  # [B] int32, how many are sampled
  stopped: Any  # [B] bool, ended by a stop id


@struct.dataclass
class PackedPrompts:
  """Holds prompts that are run together, and the rows sampled from them."""

  tokens: Any  # [r, T] int32, packed, without the common prefix
  positions: Any  # [r, T] int32, counted from the start of the prefix
  segments: Any  # [r, T] int32
  arms: Any  # [r] int32, of all prompts in a packed row
  last: Any  # [A] int32, where in r * T the last token of a row's prompt is
  row_id: Any  # [A] int32


@struct.dataclass
class PrefilledRows:
  """Holds rows that have a first token and wait for a slot."""

  # Per layer: keys, values [r, T, K, H] of the prompts, or the State [A, ...]
  # of a linear layer after the last token of each row's prompt.
  past: Any
  token: Any  # [A] int32
  logprob: Any  # [A] float32
  key: Any  # [A, 2] uint32


@struct.dataclass
class SlotAssignment:
  """Says which prefilled rows go into which slots.

  There are always `a` entries, so that one program serves; those that are no
  row name a slot that does not exist.
  """

  index: Any  # [a] int32, of A
  slot: Any  # [a] int32
  source: Any  # [a, Q] int32, where in r * T each token of its prompt is
  length: Any  # [a] int32, tokens of its prompt with the prefix
  arm: Any  # [a] int32
  limit: Any  # [a] int32


def kv_dtype(config: SamplingConfig, dtype: Any) -> np.dtype:
  """Returns the dtype of keys and values in slots; `dtype` is the model's."""
  return jnp.dtype(jnp.int8 if config.kv_cache_dtype == "int8" else dtype)


# Rows of the smallest step that is worth a program of its own. With SmolLM2 a
# program takes 2 s to compile and try, and a step of 64 rows saves 0.03 s of a
# step of 96 rows, 0.06 s of one of 128.
_LEAST = 64


def _smaller(size: int) -> list[int]:
  """Lists multiples of _LEAST below a size, each at most 3/4 of the last."""
  out: list[int] = []
  if size < 2 * _LEAST:
    return out
  for n in range((size - 1) // _LEAST * _LEAST, 0, -_LEAST):
    if n <= 0.75 * (out or [size])[-1]:
      out.append(n)
  return out


class Engine:
  """Holds the compiled functions over DecodeState for one model on one mesh.

  Attributes:
    start: (positions, rows) -> DecodeState with room for that many, all free.
    prefix: (params, tokens [arms, S]) -> what all prompts begin with.
    prefill: (params, prefix or None, prompts, seed) -> PrefilledRows.
    admit: (state, prefix or None, prefilled, assignment) -> DecodeState.
    advance: (params, state, free, wanted, steps) -> DecodeState.
    shrink: (state, slots [b] int32) -> DecodeState of those slots; see `sizes`.
    batch_size: slots; a multiple of the row shards.
    shards: row shards; packed rows of prompts are a multiple of them.
    rows, whole: shardings over rows and of replicated arrays.
  """

  def __init__(
    self,
    model: Decoder,
    config: SamplingConfig,
    stop_ids: Sequence[int],
    mesh: Mesh,
  ):
    self.model, self.config = model, config
    self.kv_dtype = kv_dtype(config, model.dtype)
    self.stop_ids = np.asarray(sorted(stop_ids), np.int32)
    self.shards = meshes.num_row_shards(mesh)
    self.batch_size = -(-config.batch_size // self.shards) * self.shards
    self.whole, self.rows = NamedSharding(mesh, P()), meshes.row_sharding(mesh)
    place = DecodeState(past_shardings(model.config, mesh), *[self.rows] * 10)
    self._place = place
    self.start = jax.jit(
      self._start, static_argnums=(0, 1), out_shardings=place
    )
    self.prefix = jax.jit(self._prefix, out_shardings=self.whole)
    self.prefill = jax.jit(self._prefill)
    self.admit = jax.jit(self._admit, out_shardings=place, donate_argnums=0)
    self.advance = jax.jit(self._advance, out_shardings=place, donate_argnums=1)
    self.shrink = jax.jit(
      lambda state, slots: jax.tree.map(lambda x: x[slots], state),
      out_shardings=place,
    )
    self._one_cpu = mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"
    self._sizes: dict[int, tuple[int, ...]] = {}  # by slots

  def steps(
    self,
    params: PyTree,
    state: DecodeState,
    free: np.ndarray,
    wanted: int,
    most: int,
  ) -> DecodeState:
    """Calls `advance` with numbers of the host."""
    numbers = (free, np.int32(wanted), np.int32(most))
    return self.advance(
      params, state, *(meshes.put(np.asarray(x), self.whole) for x in numbers)
    )

  def num_programs(self) -> int:
    """Counts the programs that were compiled or read from a cache so far."""
    names = ("start", "prefix", "prefill", "admit", "advance", "shrink")
    return sum(getattr(self, name)._cache_size() for name in names)

  def sizes(self, params: PyTree, slots: int) -> tuple[int, ...]:
    """Returns the sizes to shrink to, in which a row has the very same bits.

    Sizes are tried out, since rounding depends on how XLA cuts products into
    blocks. Only one CPU shrinks: on other devices a step of few rows takes
    about as long as one of many, as it reads the same weights.
    """
    if slots not in self._sizes:
      sizes = _smaller(self.batch_size) if self._one_cpu else []
      if sizes:
        full = self._bits(params, slots, self.batch_size)
        sizes = [
          n
          for n in sizes
          if np.array_equal(self._bits(params, slots, n), full[:n])
        ]
      self._sizes[slots] = tuple(sizes)
    return self._sizes[slots]

  def _bits(self, params: PyTree, slots: int, size: int) -> np.ndarray:
    """Decodes two steps of made-up rows; returns the bits of their logprobs."""
    rows = np.arange(size, dtype=np.int32)
    state = self.start(slots, size)
    fields: dict[str, np.ndarray] = {
      "token": rows % self.model.config.vocab_size,
      "position": rows % (slots - 1),
      "limit": np.full_like(rows, self.config.max_new_tokens),
      "live": rows >= 0,
    }
    state = dataclasses.replace(
      state, **{k: meshes.put(x, self.rows) for k, x in fields.items()}
    )
    state = self.steps(params, state, rows < 0, size + 1, 2)
    return meshes.to_host(state.logprobs).view(np.uint32)

  def abstract_state(self, slots: int) -> DecodeState:
    """Returns shapes and shardings of what `start` makes."""
    shapes = jax.eval_shape(lambda: self._start(slots, self.batch_size))

    def place(x, sharding):
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    past = [
      jax.tree.map(lambda x, s=s: place(x, s), layer)
      for s, layer in zip(self._place.past, shapes.past, strict=True)
    ]
    rows = jax.tree.map(lambda x: place(x, self.rows), shapes)
    return dataclasses.replace(rows, past=past)

  def _start(self, slots: int, b: int) -> DecodeState:
    """Makes b free slots with room for `slots` positions each."""
    new = self.config.max_new_tokens
    zero = jnp.zeros((b,), jnp.int32)
    return DecodeState(
      past=empty_past(self.model, b, slots, self.kv_dtype),
      token=zero,
      position=zero,
      key=jnp.zeros((b, 2), jnp.uint32),
      arm=zero,
      limit=zero,
      live=zero > 0,
      tokens=jnp.zeros((b, new), jnp.int32),
      logprobs=jnp.zeros((b, new), jnp.float32),
      lengths=zero,
      stopped=zero > 0,
    )

  def _prefix(self, params: PyTree, tokens: jax.Array) -> list[Prefix | State]:
    """Computes what tokens [arms, S] that begin all prompts leave behind."""
    at = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    arms = jnp.broadcast_to(jnp.arange(len(tokens))[:, None], tokens.shape)
    ones = jnp.ones_like(tokens)
    ends = jnp.arange(len(tokens)) * tokens.shape[1] + tokens.shape[1] - 1
    _, kept = self.model.prefill(params, tokens, at, ones, arms=arms, ends=ends)
    assert kept is not None
    return as_prefix(kept)

  def _prefill(
    self,
    params: PyTree,
    prefix: list[Prefix | State] | None,
    prompts: PackedPrompts,
    seed: jax.Array,
  ) -> PrefilledRows:
    """Runs packed prompts and chooses the first token of each row."""
    begin = jax.tree.map(lambda x: x[prompts.arms], prefix)
    arms = jnp.broadcast_to(prompts.arms[:, None], prompts.tokens.shape)
    hidden, past = self.model.prefill(
      *(params, prompts.tokens, prompts.positions, prompts.segments),
      *(begin, arms, prompts.last),
    )
    last = hidden.reshape(-1, hidden.shape[-1])[prompts.last]  # [A, D]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(
      jax.random.PRNGKey(seed), prompts.row_id
    )
    token, logprob = self._pick(
      params, last, keys, jnp.zeros_like(prompts.last)
    )
    return PrefilledRows(past, token, logprob, keys)

  # Two samples of prompt B are admitted to slots 5 and 2 of 6, where a = 3:
  #
  #   prefilled   keys of packed prompts, flat [r * T]   A A A B B . C C C C . .
  #   source      where the row's prompt lies, [a, Q]    3 4 | 3 4 | 0 1
  #   slot        where the row goes, [a]                5   | 2   | 6
  #   afterwards  slots 5 and 2 hold prefix + B, and each its first token; there
  #               is no slot 6, so the third entry, which is no row, is dropped
  def _admit(
    self,
    state: DecodeState,
    prefix: list[Prefix | State] | None,
    prefilled: PrefilledRows,
    assignment: SlotAssignment,
  ) -> DecodeState:
    """Copies prefilled rows into free slots."""
    token, logprob, keys = (
      x[assignment.index]
      for x in (prefilled.token, prefilled.logprob, prefilled.key)
    )
    stopped = self._stops(token)

    def put(old, new):
      return old.at[assignment.slot].set(new.astype(old.dtype), mode="drop")

    return DecodeState(
      past=admit_past(
        state.past, prefilled.past, prefix, assignment, self.kv_dtype
      ),
      token=put(state.token, token),
      position=put(state.position, assignment.length),
      key=put(state.key, keys),
      arm=put(state.arm, assignment.arm),
      limit=put(state.limit, assignment.limit),
      live=put(state.live, ~stopped & (assignment.limit > 1)),
      tokens=state.tokens.at[assignment.slot, 0].set(token, mode="drop"),
      logprobs=state.logprobs.at[assignment.slot, 0].set(logprob, mode="drop"),
      lengths=put(state.lengths, jnp.ones_like(assignment.slot)),
      stopped=put(state.stopped, stopped),
    )

  def _advance(
    self,
    params: PyTree,
    state: DecodeState,
    free: jax.Array,
    wanted: jax.Array,
    steps: jax.Array,
  ) -> DecodeState:
    """Decodes until `wanted` slots are free, none is live, or `steps` are done.

    Args:
      params: the sampler's copy.
      state: see DecodeState.
      free: [B] bool, slots that hold no row, as the host knows: it ends rows
        at stop strings, which the devices do not see.
      wanted: [] int32.
      steps: [] int32.
    """
    state = dataclasses.replace(state, live=state.live & ~free)

    def more(carry):
      i, s = carry
      live = jnp.sum(s.live)
      return (i < steps) & (live > 0) & (len(s.live) - live < wanted)

    def body(carry):
      i, s = carry
      return i + 1, self._step(params, s)

    return jax.lax.while_loop(more, body, (jnp.int32(0), state))[1]

  def _step(self, params: PyTree, s: DecodeState) -> DecodeState:
    """Decodes one token in every slot, and keeps it in those that are live."""
    hidden, past = self.model.decode(params, s.token, s.position, s.past, s.arm)
    token, logprob = self._pick(params, hidden, s.key, s.lengths)
    stopped = s.live & self._stops(token)

    def write(old, new):
      # A slot that is free writes beyond its row, where it is dropped.
      at = jnp.where(s.live, s.lengths, old.shape[1])
      return old.at[jnp.arange(len(at)), at].set(new, mode="drop")

    lengths = s.lengths + s.live
    return DecodeState(
      past=past,
      token=token,
      # A free slot decodes on at one position, inside of its room.
      position=s.position + s.live,
      key=s.key,
      arm=s.arm,
      limit=s.limit,
      live=s.live & ~stopped & (lengths < s.limit),
      tokens=write(s.tokens, token),
      logprobs=write(s.logprobs, logprob),
      lengths=lengths,
      stopped=s.stopped | stopped,
    )

  def _pick(self, params, hidden, keys, t):
    """Chooses token number t [B] of rows from their hidden states [B, D]."""
    keys = jax.vmap(jax.random.fold_in)(keys, t)
    token, logprob = choose_token(
      self.model.logits(params, hidden), keys, self.config
    )
    return token.astype(jnp.int32), logprob

  def _stops(self, token: jax.Array) -> jax.Array:  # [B] -> [B] bool
    """Tells which tokens end a row."""
    return jnp.isin(token, self.stop_ids)
