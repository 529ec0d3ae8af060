"""The sampler: sharded eval rollouts, apart from training.

The tokens that all prompts begin with are run once, then each distinct prompt
once, packed with others; its samples are decoded in slots that take in the next
rows as soon as some of them are free (see decode.py). So the cost follows the
mean length of the completions. What is compiled depends on the set of prompts
alone: five programs for an eval, however often it is run, and on a CPU three or
four for each size that slots shrink to.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from bct_jax import mesh as meshes
from bct_jax.config import SamplingConfig
from bct_jax.data.batches import best_fit
from bct_jax.infra.progress import log_line
from bct_jax.models.decoder import Decoder
from bct_jax.sample.decode import Engine, Places, Prompts, Ready, State
from bct_jax.types import Completion, PyTree

# Steps between two looks at the rows, for progress and stop strings.
STEPS = 32
# Tokens of a packed row, if no prompt is longer: attention costs their square.
LENGTH = 128


Sample = Callable[..., list[Any]]
# Ids sampled so far -> how many of them to keep, or None to go on.
FindStop = Callable[[Sequence[int]], int | None]


@dataclasses.dataclass
class _Packed:
  """Prompts that are run together: indices of their rows, and where they lie.

  Attributes:
    rows: indices of rows, those of a prompt behind each other.
    first: for each of them, where in the packed tokens its prompt begins.
    arms: of each packed row.
  """

  rows: list[int]
  first: list[int]
  arms: list[int]


def make_sampler(
  model: Decoder,
  config: SamplingConfig,
  stop_ids: frozenset[int],
  mesh: Mesh,
) -> Sample:
  """Compiles nothing yet; a set of prompts compiles at its first use.

  Args:
    model: the decoder; its `max_length` bounds prompt plus new tokens.
    config: how tokens are chosen, limits and batch size.
    stop_ids: each ends a completion, and is part of it.
    mesh: slots are spread over (data, fsdp).

  Returns:
    sample(params, prompts, row_ids, seed, finished, limits, find_stop, skip,
    arms, among) -> completions in the order of the prompts. `params` are
    unstacked; `prompts` are lists of ids, equal ones are run once; `row_ids`
    one integer each; `finished` is called with (index, completion) as rows end;
    `limits` are new tokens per row, at most `max_new_tokens`; `find_stop` ends
    a row by its tokens so far; indices in `skip` are not sampled, and None in
    the result; `arms` says which adapter each row has, if `params` hold
    several. Sets of as many prompts, taken from the same `among`, share what is
    compiled.
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
    most = _limits(limits, prompts, config)
    check_prompts(prompts, model.config.max_length, most)
    alone = [0] * len(prompts)
    run = _SamplerRun(
      engine, params, prompts, row_ids, seed, most, arms or alone, among
    )
    before = engine.num_programs()
    out = run.all(finished, find_stop, frozenset(skip))
    if new := engine.num_programs() - before:
      log_line(f"sampler: {new} new programs for rows of {run.slots} positions")
    return out

  return sample


def _limits(limits, prompts, config: SamplingConfig) -> list[int]:
  out = [config.max_new_tokens] * len(prompts) if limits is None else [*limits]
  for i, limit in enumerate(out):
    if not 0 < limit <= config.max_new_tokens:
      raise ValueError(
        f"row {i} may have {limit} new tokens: between 1 and max_new_tokens = "
        f"{config.max_new_tokens}"
      )
  return out


class _SamplerRun:
  """One set of prompts: what is admitted when, and what comes back.

  All shapes, and which prompts are packed together, follow from the whole set,
  also from rows that are skipped: rounding depends on shapes, and a restarted
  eval must give the very same numbers. The sizes that slots shrink to are those
  on which rounding does not depend.
  """

  def __init__(
    self, engine: Engine, params, prompts, row_ids, seed, limits, arms, among
  ):
    self.engine, self.params, self.arms = engine, params, arms
    self.prompts, self.row_ids, self.limits = prompts, row_ids, limits
    of_all = prompts if among is None else among
    self.shared = common_prefix(of_all)
    longest = max(map(len, of_all)) - self.shared
    rests = [
      (arm, tuple(prompt[self.shared :]))
      for arm, prompt in zip(arms, prompts, strict=True)
    ]
    self.width = _round_up(longest, 8)  # Q
    self.share = max(1, engine.batch_size // 8)  # a
    self.packed, self.shape = _pack(
      rests,
      engine.config.prefill_tokens,
      engine.shards,
      engine.batch_size,
      None if among is None else longest,
    )
    if among is None:
      self.most = max(len(p.rows) for p in self.packed)  # A
      self.slots = num_slots(prompts, limits)  # S
    else:
      self.most = engine.batch_size
      self.slots = num_slots(among, [engine.config.max_new_tokens] * len(among))
    self.seed = meshes.put(np.asarray(seed, np.uint32), engine.whole)

  def all(self, finished, find_stop, skip) -> list[Completion | None]:
    """Runs every row that is not skipped."""
    engine = self.engine
    out: list[Completion | None] = [None] * len(self.prompts)
    waiting = [p for p in self.packed if not skip.issuperset(p.rows)]
    held: list[int | None] = [None] * engine.batch_size  # the row in each slot
    sizes = engine.sizes(self.params, self.slots) if waiting else ()
    prefix = self._prefix(waiting)
    state = engine.start(self.slots, engine.batch_size)
    ready: Ready | None = None
    left: list[tuple[int, int, int]] = []  # of those ready: (index, row, first)

    while waiting or left or any(row is not None for row in held):
      while waiting or left:
        if not left:
          packed = waiting.pop(0)
          ready = engine.prefill(
            self.params, prefix, self._prompts(packed), self.seed
          )
          rows = enumerate(zip(packed.rows, packed.first, strict=True))
          left = [(i, row, at) for i, (row, at) in rows if row not in skip]
        wanted = min(len(left), self.share)
        if sum(row is None for row in held) < wanted:
          break
        places = self._places(left[:wanted], held)
        state = engine.admit(state, prefix, ready, places)
        left = left[wanted:]
      else:  # nothing waits for a slot
        state, held = self._shrink(state, held, sizes)
        below = [n for n in sizes if n < len(held)]
        wanted = len(held) - max(below, default=-1)
      free = np.array([row is None for row in held])
      state = engine.steps(self.params, state, free, wanted, STEPS)
      for slot, row, completion in _ended(state, held, find_stop):
        held[slot] = None
        out[row] = completion
        finished(row, completion)
    return out

  def _shrink(self, state, held, sizes) -> tuple[State, list[int | None]]:
    """The least size with room for all rows that have not ended."""
    rows = [i for i, row in enumerate(held) if row is not None]
    size = min((n for n in sizes if n >= len(rows)), default=len(held))
    if size >= len(held):
      return state, held
    free = [i for i, row in enumerate(held) if row is None]
    kept = rows + free[: size - len(rows)]
    slots = meshes.put(np.asarray(kept, np.int32), self.engine.whole)
    return self.engine.shrink(state, slots), [held[i] for i in kept]

  def _prefix(self, waiting):
    if not self.shared or not waiting:
      return None
    shared = self.prompts[0][: self.shared]
    tokens = np.asarray([shared] * (max(self.arms) + 1), np.int32)
    whole = self.engine.whole
    return self.engine.prefix(self.params, meshes.put(tokens, whole))

  def _prompts(self, packed: _Packed) -> Prompts:
    tokens, positions, segments = np.zeros((3, self.shape[0] * self.shape[1]))
    last, row_id = np.zeros((2, self.most), np.int32)
    for a, (row, first) in enumerate(
      zip(packed.rows, packed.first, strict=True)
    ):
      ids = self.prompts[row][self.shared :]
      at = slice(first, first + len(ids))
      tokens[at] = ids
      positions[at] = self.shared + np.arange(len(ids))
      segments[at] = 1 + first
      last[a], row_id[a] = at.stop - 1, self.row_ids[row]
    arms = np.zeros(self.shape[0], np.int32)
    arms[: len(packed.arms)] = packed.arms
    arrays = [
      x.reshape(self.shape).astype(np.int32)
      for x in (tokens, positions, segments)
    ]
    rows, whole = self.engine.rows, self.engine.whole
    return Prompts(
      *(meshes.put(x, rows) for x in (*arrays, arms)),
      *(meshes.put(x, whole) for x in (last, row_id)),
    )

  def _places(self, chosen: list[tuple[int, int, int]], held: list) -> Places:
    """Takes slots for rows."""
    source = np.zeros((self.share, self.width), np.int32)
    index, length, arm, limit = np.zeros((4, self.share), np.int32)
    slot = np.full(self.share, len(held), np.int32)
    free = [i for i, row in enumerate(held) if row is None]
    end = self.shape[0] * self.shape[1] - 1
    for a, (i, row, first) in enumerate(chosen):
      index[a], slot[a], held[free[a]] = i, free[a], row
      source[a] = np.minimum(first + np.arange(self.width), end)
      length[a], limit[a] = len(self.prompts[row]), self.limits[row]
      arm[a] = self.arms[row]
    arrays = (index, slot, source, length, arm, limit)
    return Places(*(meshes.put(x, self.engine.whole) for x in arrays))


def num_slots(prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> int:
  """Positions that a row of the KV cache has room for."""
  ends = [len(p) + n for p, n in zip(prompts, limits, strict=True)]
  shared = common_prefix(prompts)
  longest = max(len(p) - shared for p in prompts)
  return _round_up(max(max(ends), shared + _round_up(longest, 8)), 8)


def _round_up(count: int, multiple: int) -> int:
  return -(-count // multiple) * multiple


def _pack(
  rests: Sequence[tuple[int, tuple[int, ...]]],
  tokens: int,
  shards: int,
  most: int,
  longest: int | None = None,
) -> tuple[list[_Packed], tuple[int, int]]:
  """Packs distinct prompts into rows, best fit first, and rows into batches.

  Args:
    rests: (arm, what is run of its prompt) for each row.
    tokens: about how many are run together.
    shards: packed rows are a multiple of it.
    most: rows to sample per batch; further samples of a prompt run it again.
    longest: None is that of `rests`, and the shape fits them; else no prompt
      is longer, and the shape depends on nothing but that and their number.

  Returns:
    The batches and their shape (packed rows, tokens of each).
  """
  samples: dict[tuple[int, tuple[int, ...]], list[int]] = {}
  for row, key in enumerate(rests):
    samples.setdefault(key, []).append(row)
  bound = longest or max(len(rest) for _, rest in samples)
  length = _round_up(max(bound, min(tokens, LENGTH)), 8)
  items: dict[int, list[tuple[int, list[int]]]] = {}
  for (arm, rest), rows in samples.items():
    for i in range(0, len(rows), most):
      items.setdefault(arm, []).append((len(rest), rows[i : i + most]))
  bins: list[tuple[int, list[tuple[int, list[int]]]]] = []
  for arm, of_arm in items.items():
    of_arm.sort(key=lambda item: item[1])  # prompts of one length by their row
    sizes = [(size, len(rows)) for size, rows in of_arm]
    bins += [
      (arm, [of_arm[i] for i in members])
      for members in best_fit(sizes, length, most)
    ]
  rows = len(bins) if longest is None else -(-len(samples) // (length // bound))
  width = _even(rows, _round_up(max(1, tokens // length), shards), shards)
  out: list[_Packed] = []
  r = width
  for arm, members in bins:
    if r == width or len(out[-1].rows) + sum(len(m[1]) for m in members) > most:
      out.append(_Packed([], [], []))
      r = 0
    out[-1].arms.append(arm)
    at = r * length
    for size, rows in members:
      out[-1].rows.extend(rows)
      out[-1].first.extend([at] * len(rows))
      at += size
    r += 1
  return out, (width, length)


def _even(bins: int, most: int, shards: int) -> int:
  """Packed rows per batch: from half of `most`, with the fewest empty ones."""
  widths = range(_round_up(-(-most // 2), shards), most + 1, shards)
  return min(widths, key=lambda w: (-(-bins // w) * w, -w))


def _ended(state: State, held, find_stop):
  """(slot, row, completion) of every row that has ended."""
  live, stopped, lengths, tokens, logprobs = meshes.to_host(
    (state.live, state.stopped, state.lengths, state.tokens, state.logprobs)
  )
  for slot, row in enumerate(held):
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
  """Raises ValueError for a prompt that is empty or leaves no room for its
  new tokens; one limit holds for all."""
  if isinstance(limits, int):
    limits = [limits] * len(prompts)
  for i, (prompt, new) in enumerate(zip(prompts, limits, strict=True)):
    if not 0 < len(prompt) <= max_length - new:
      raise ValueError(
        f"prompt {i} has {len(prompt)} tokens; with {new} new tokens and a "
        f"context of {max_length} it must have 1 to {max_length - new}"
      )


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
  """How many first tokens all prompts share; each keeps one of its own."""
  shortest = min(len(p) for p in prompts)
  columns = zip(*prompts, strict=False)
  same = next((i for i, c in enumerate(columns) if len(set(c)) > 1), shortest)
  return min(same, shortest - 1)
