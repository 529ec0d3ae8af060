"""Samples completions of a set of prompts, apart from training.

The tokens that all prompts begin with are run once. Then each distinct prompt
is run once, packed with others, and its samples are decoded in slots that take
in the next rows as soon as some slots are free (see decode.py). So the cost
follows the mean length of the completions. What is compiled depends on the set
of prompts alone: five programs for an eval, however often it runs, and on a CPU
three or four more for each size that the slots shrink to.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from bct_jax import mesh as meshes
from bct_jax.config import SamplingConfig
from bct_jax.data.batches import round_up
from bct_jax.infra import memory
from bct_jax.infra.progress import log_line
from bct_jax.models.decoder import Decoder
from bct_jax.sample.decode import (
  DecodeState,
  Engine,
  PackedPrompts,
  PrefilledRows,
  SlotAssignment,
)
from bct_jax.sample.prompt_packing import (
  PromptBatch,
  common_prefix,
  num_slots,
  pack_prompts,
)
from bct_jax.types import Completion, PyTree

# Steps after which the host reads the rows, for progress and stop strings.
STEPS = 32
Sample = Callable[..., list[Any]]
# Ids sampled so far -> how many of them to keep, or None to go on.
FindStop = Callable[[Sequence[int]], int | None]


def make_sampler(
  model: Decoder,
  config: SamplingConfig,
  stop_ids: frozenset[int],
  mesh: Mesh,
) -> Sample:
  """Makes a sampler, which compiles for a set of prompts at its first use.

  Args:
    model: the decoder; its `max_length` bounds prompt plus new tokens.
    config: how tokens are chosen, limits and batch size.
    stop_ids: each ends a completion, and is part of it.
    mesh: slots are spread over (data, fsdp).

  Returns:
    sample(params, prompts, row_ids, seed, finished, limits, find_stop, skip,
    arms, among) -> completions in the order of the prompts. `params` are
    unstacked; `prompts` are lists of ids, of which equal ones are run once;
    `row_ids` are one integer each, from which random keys are made; `finished`
    is called with (index, completion) as rows end; `limits` are new tokens per
    row, at most `max_new_tokens`; `find_stop` ends a row by its tokens so far;
    indices in `skip` are not sampled, and None in the result; `arms` says which
    adapter each row has, if `params` hold several. Sets of as many prompts,
    taken from the same `among`, share what is compiled.
  """
  engine = Engine(model, config, tuple(stop_ids), mesh)

  def sample(
    params: PyTree,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[int],
    seed: int,
    finished: Callable[[int, Completion], Any] = lambda index, completion: None,
    limits: Sequence[int] | None = None,
    find_stop: FindStop | None = None,
    skip: Collection[int] = (),
    arms: Sequence[int] | None = None,
    among: Sequence[Sequence[int]] | None = None,
  ) -> list[Completion | None]:
    row_limits = _row_limits(limits, prompts, config)
    check_prompts(prompts, model.config.max_length, row_limits)
    one_arm = [0] * len(prompts)
    run = _SamplerRun(
      engine, params, prompts, row_ids, seed, row_limits, arms or one_arm, among
    )
    before = engine.num_programs()
    knobs = (
      f"--config.sampling.batch_size below {config.batch_size}, "
      f"--config.sampling.prefill_tokens below {config.prefill_tokens} or "
      "--config.mesh.tensor=2"
    )
    with memory.name_shortage(f"sampling {len(prompts)} rows", knobs):
      out = run.sample_rows(finished, find_stop, frozenset(skip))
    if new := engine.num_programs() - before:
      log_line(f"sampler: {new} new programs for rows of {run.slots} positions")
    return out

  return sample


def _row_limits(limits, prompts, config: SamplingConfig) -> list[int]:
  """Returns the new tokens that each row may have; raises if out of range."""
  out = [config.max_new_tokens] * len(prompts) if limits is None else [*limits]
  for i, limit in enumerate(out):
    if not 0 < limit <= config.max_new_tokens:
      raise ValueError(
        f"row {i} may have {limit} new tokens: between 1 and max_new_tokens = "
        f"{config.max_new_tokens}"
      )
  return out


class _SamplerRun:
  """Schedules one set of prompts: which rows are admitted when.

  All shapes, and which prompts are packed together, follow from the whole set,
  with the rows that are skipped: rounding depends on shapes, and a restarted
  eval must give the very same numbers. The slots shrink only to sizes on which
  rounding does not depend.
  """

  def __init__(
    self, engine: Engine, params, prompts, row_ids, seed, limits, arms, among
  ):
    self.engine, self.params, self.arms = engine, params, arms
    self.prompts, self.row_ids, self.limits = prompts, row_ids, limits
    possible = prompts if among is None else among
    self.shared = common_prefix(possible)
    longest = max(map(len, possible)) - self.shared
    rests = [
      (arm, tuple(prompt[self.shared :]))
      for arm, prompt in zip(arms, prompts, strict=True)
    ]
    self.width = round_up(longest, 8)  # Q
    self.admitted_at_once = max(1, engine.batch_size // 8)  # a
    self.batches, self.shape = pack_prompts(
      rests,
      engine.config.prefill_tokens,
      engine.shards,
      engine.batch_size,
      None if among is None else longest,
    )
    if among is None:
      self.batch_rows = max(len(b.rows) for b in self.batches)  # A
      self.slots = num_slots(prompts, limits)  # S
    else:
      self.batch_rows = engine.batch_size
      self.slots = num_slots(among, [engine.config.max_new_tokens] * len(among))
    self.seed = meshes.put(np.asarray(seed, np.uint32), engine.whole)

  # Prompts A (of which 3 samples are drawn), B, C and D; 4 slots, of which 2
  # are filled at once. Lower case are rows.
  #
  #   prefill A B, admit a1 a2, admit a3 b1: all slots are taken
  #   prefill C D, decode until 2 slots are free: a2 and b1 have ended
  #   admit c1 d1: nothing waits for a slot any more
  #   decode until a smaller size holds the rows that go on; shrink, decode
  #
  # At the latest after STEPS steps decoding pauses: the host reads all rows and
  # ends those with a stop string.
  def sample_rows(self, finished, find_stop, skip) -> list[Completion | None]:
    """Samples every row that is not skipped."""
    engine = self.engine
    out: list[Completion | None] = [None] * len(self.prompts)
    batches = [b for b in self.batches if not skip.issuperset(b.rows)]
    slot_rows: list[int | None] = [None] * engine.batch_size  # None is free
    sizes = engine.sizes(self.params, self.slots) if batches else ()
    prefix = self._prefix() if batches else None
    state = engine.start(self.slots, engine.batch_size)
    prefilled: PrefilledRows | None = None
    # Rows of `prefilled` that wait for a slot: (index in it, row, first).
    queue: list[tuple[int, int, int]] = []

    while batches or queue or any(row is not None for row in slot_rows):
      while batches or queue:
        if not queue:
          batch = batches.pop(0)
          prefilled = engine.prefill(
            self.params, prefix, self._pack_tokens(batch), self.seed
          )
          rows = enumerate(zip(batch.rows, batch.first, strict=True))
          queue = [(i, row, at) for i, (row, at) in rows if row not in skip]
        wanted = min(len(queue), self.admitted_at_once)
        if sum(row is None for row in slot_rows) < wanted:
          break
        assignment = self._assign(queue[:wanted], slot_rows)
        state = engine.admit(state, prefix, prefilled, assignment)
        queue = queue[wanted:]
      else:  # nothing waits for a slot
        state, slot_rows = self._shrink(state, slot_rows, sizes)
        smaller = [n for n in sizes if n < len(slot_rows)]
        # Without a smaller size, more than all slots: until no row goes on.
        wanted = len(slot_rows) - max(smaller, default=-1)
      free = np.array([row is None for row in slot_rows])
      state = engine.steps(self.params, state, free, wanted, STEPS)
      for slot, row, completion in _ended(state, slot_rows, find_stop):
        slot_rows[slot] = None
        out[row] = completion
        finished(row, completion)
    return out

  def _shrink(
    self, state, slot_rows, sizes
  ) -> tuple[DecodeState, list[int | None]]:
    """Shrinks the slots to the least size that holds all rows that go on."""
    live = [i for i, row in enumerate(slot_rows) if row is not None]
    size = min((n for n in sizes if n >= len(live)), default=len(slot_rows))
    if size >= len(slot_rows):
      return state, slot_rows
    free = [i for i, row in enumerate(slot_rows) if row is None]
    slots = live + free[: size - len(live)]
    on_devices = meshes.put(np.asarray(slots, np.int32), self.engine.whole)
    return self.engine.shrink(state, on_devices), [slot_rows[i] for i in slots]

  def _prefix(self):
    """Runs the tokens that all prompts begin with; None if there are none."""
    if not self.shared:
      return None
    shared = self.prompts[0][: self.shared]
    tokens = np.asarray([shared] * (max(self.arms) + 1), np.int32)
    whole = self.engine.whole
    return self.engine.prefix(self.params, meshes.put(tokens, whole))

  def _pack_tokens(self, batch: PromptBatch) -> PackedPrompts:
    """Writes the prompts of a batch into packed rows, on the devices."""
    tokens, positions, segments = np.zeros((3, self.shape[0] * self.shape[1]))
    last, row_id = np.zeros((2, self.batch_rows), np.int32)
    for a, (row, first) in enumerate(zip(batch.rows, batch.first, strict=True)):
      ids = self.prompts[row][self.shared :]
      at = slice(first, first + len(ids))
      tokens[at] = ids
      positions[at] = self.shared + np.arange(len(ids))
      segments[at] = 1 + first
      last[a], row_id[a] = at.stop - 1, self.row_ids[row]
    arms = np.zeros(self.shape[0], np.int32)
    arms[: len(batch.arms)] = batch.arms
    arrays = [
      x.reshape(self.shape).astype(np.int32)
      for x in (tokens, positions, segments)
    ]
    rows, whole = self.engine.rows, self.engine.whole
    return PackedPrompts(
      *(meshes.put(x, rows) for x in (*arrays, arms)),
      *(meshes.put(x, whole) for x in (last, row_id)),
    )

  def _assign(
    self, entries: list[tuple[int, int, int]], slot_rows: list[int | None]
  ) -> SlotAssignment:
    """Assigns free slots to entries of the queue; writes them to slot_rows."""
    count = self.admitted_at_once
    source = np.zeros((count, self.width), np.int32)
    index, length, arm, limit = np.zeros((4, count), np.int32)
    slot = np.full(count, len(slot_rows), np.int32)
    free = [i for i, row in enumerate(slot_rows) if row is None]
    end = self.shape[0] * self.shape[1] - 1
    for a, (i, row, first) in enumerate(entries):
      index[a], slot[a], slot_rows[free[a]] = i, free[a], row
      source[a] = np.minimum(first + np.arange(self.width), end)
      length[a], limit[a] = len(self.prompts[row]), self.limits[row]
      arm[a] = self.arms[row]
    arrays = (index, slot, source, length, arm, limit)
    return SlotAssignment(*(meshes.put(x, self.engine.whole) for x in arrays))


def _ended(state: DecodeState, slot_rows, find_stop):
  """Yields (slot, row, completion) of every row that has ended."""
  live, stopped, lengths, tokens, logprobs = meshes.to_host(
    (state.live, state.stopped, state.lengths, state.tokens, state.logprobs)
  )
  for slot, row in enumerate(slot_rows):
    if row is None:
      continue
    n = int(lengths[slot])
    keep = None
    if find_stop is not None:
      keep = find_stop([int(t) for t in tokens[slot, :n]])
    if keep is None and live[slot]:
      continue
    n = n if keep is None else keep
    yield (
      slot,
      row,
      Completion(
        tokens=tuple(int(t) for t in tokens[slot, :n]),
        logprobs=tuple(float(x) for x in logprobs[slot, :n]),
        stopped=bool(stopped[slot]) or keep is not None,
      ),
    )


def check_prompts(
  prompts: Sequence[Sequence[int]],
  max_length: int,
  limits: Sequence[int] | int,
) -> None:
  """Raises ValueError for an empty prompt, or one too long for its new tokens.

  Args:
    prompts: ids of each.
    max_length: what the model was made for.
    limits: new tokens of each row, or one number for all.
  """
  if isinstance(limits, int):
    limits = [limits] * len(prompts)
  for i, (prompt, new) in enumerate(zip(prompts, limits, strict=True)):
    if not 0 < len(prompt) <= max_length - new:
      raise ValueError(
        f"prompt {i} has {len(prompt)} tokens; with {new} new tokens and a "
        f"context of {max_length} it must have 1 to {max_length - new}"
      )
