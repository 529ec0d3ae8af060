"""The sampler: sharded eval rollouts, apart from training.

The tokens that all prompts begin with are run once, then each distinct prompt
once, packed with others; its samples are decoded in slots that take in the next
rows as soon as enough of them are free (see decode.py). So the cost follows the
mean length of the completions. What is compiled depends on the set of prompts
alone: four programs for an eval, however often it is run.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from bct_jax import mesh as meshes
from bct_jax.config import SamplingConfig
from bct_jax.decode import Engine, Group, State
from bct_jax.models.decoder import Decoder
from bct_jax.types import PyTree

# Steps between two looks at the rows, for progress and stop strings.
STEPS = 32


@dataclasses.dataclass(frozen=True)
class Completion:
  """One sampled completion on the host.

  Attributes:
    tokens: ids up to and with the stop id.
    logprobs: log-probability in nats of each, untempered.
    stopped: False if it was cut at the limit of new tokens.
  """

  tokens: tuple[int, ...]
  logprobs: tuple[float, ...]
  stopped: bool


Sample = Callable[..., list[Any]]
# Ids sampled so far -> how many of them to keep, or None to go on.
FindStop = Callable[[Sequence[int]], int | None]


@dataclasses.dataclass(frozen=True)
class _Batch:
  """Prompts that are run together: indices of their rows, and where they lie.

  Attributes:
    rows: indices of rows, in the order of their prompts.
    place: (packed row, first token) of each row's prompt.
  """

  rows: list[int]
  place: list[tuple[int, int]]


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
    sample(params, prompts, row_ids, seed, finished, limits, find_stop, skip) ->
    completions in the order of the prompts. `params` are unstacked; `prompts`
    are lists of ids, equal ones are run once; `row_ids` one integer each;
    `finished` is called with (index, completion) as rows end; `limits` are new
    tokens per row, at most `max_new_tokens`; `find_stop` ends a row by its
    tokens so far; indices in `skip` are not sampled, and None in the result.
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
  ) -> list[Completion | None]:
    check_prompts(prompts, model.config.max_length, config.max_new_tokens)
    run = _Run(
      engine, params, prompts, row_ids, seed, _limits(limits, prompts, config)
    )
    return run.all(finished, find_stop, frozenset(skip))

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


class _Run:
  """One set of prompts: what is admitted when, and what comes back.

  All shapes, and which prompts are packed together, follow from the whole set,
  also from rows that are skipped: rounding depends on shapes, and a restarted
  eval must give the very same numbers.
  """

  def __init__(self, engine: Engine, params, prompts, row_ids, seed, limits):
    self.engine, self.params = engine, params
    self.prompts, self.row_ids, self.limits = prompts, row_ids, limits
    self.shared = common_prefix(prompts)
    config = engine.config
    rests = [tuple(prompt[self.shared :]) for prompt in prompts]
    longest = _round_up(max(map(len, rests)), 8)
    self.width = longest  # Q
    share = -(-config.prefill_tokens // engine.shards)
    self.length = max(longest, _round_up(share, 8))  # T
    self.batches = _pack(
      rests, (engine.shards, self.length), max(1, engine.batch_size // 4)
    )
    self.most = max(len(b.rows) for b in self.batches)  # A
    self.slots = num_slots(prompts, limits)  # S
    self.seed = meshes.put(np.asarray(seed, np.uint32), engine.whole)

  def all(self, finished, find_stop, skip) -> list[Completion | None]:
    """Runs every row that is not skipped."""
    engine, count = self.engine, self.engine.batch_size
    out: list[Completion | None] = [None] * len(self.prompts)
    waiting = [b for b in self.batches if not skip.issuperset(b.rows)]
    held: list[int | None] = [None] * count  # the row in each slot
    prefix = None
    if self.shared and waiting:
      tokens = np.asarray([self.prompts[0][: self.shared]], np.int32)
      prefix = engine.prefix(self.params, meshes.put(tokens, engine.whole))
    state = engine.start(self.slots)

    def wanted() -> int:  # slots that the next prompts need
      left = [r for r in waiting[0].rows if r not in skip] if waiting else []
      return len(left) or count + 1

    while waiting or any(row is not None for row in held):
      while sum(row is None for row in held) >= wanted():
        group = self._group(waiting.pop(0), held, skip)
        state = engine.admit(self.params, prefix, state, group, self.seed)
      free = np.array([row is None for row in held])
      numbers = (
        free,
        np.asarray(wanted(), np.int32),
        np.asarray(STEPS, np.int32),
      )
      state = engine.advance(
        self.params, state, *(meshes.put(x, engine.whole) for x in numbers)
      )
      for slot, row, completion in _ended(state, held, find_stop):
        held[slot] = None
        out[row] = completion
        finished(row, completion)
    return out

  def _group(self, batch: _Batch, held: list, skip) -> Group:
    """The arrays of a batch; takes slots for its rows."""
    packed = (self.engine.shards, self.length)
    tokens, positions, segments = np.zeros((3, *packed), np.int32)
    source = np.zeros((self.most, self.width), np.int32)
    last, size, row_id, limit = np.zeros((4, self.most), np.int32)
    slot = np.full(self.most, len(held), np.int32)
    free = iter([i for i, row in enumerate(held) if row is None])
    for a, (row, (r, start)) in enumerate(
      zip(batch.rows, batch.place, strict=True)
    ):
      ids = self.prompts[row][self.shared :]
      at = (r, slice(start, start + len(ids)))
      tokens[at] = ids
      positions[at] = self.shared + np.arange(len(ids))
      segments[at] = 1 + start
      first = r * self.length + start
      source[a] = np.minimum(first + np.arange(self.width), tokens.size - 1)
      last[a], size[a] = first + len(ids) - 1, self.shared + len(ids)
      row_id[a], limit[a] = self.row_ids[row], self.limits[row]
      if row not in skip:
        slot[a] = next(free)
        held[slot[a]] = row
    rows, whole = self.engine.rows, self.engine.whole
    return Group(
      *(meshes.put(x, rows) for x in (tokens, positions, segments)),
      *(
        meshes.put(x, whole) for x in (source, last, size, slot, row_id, limit)
      ),
    )


def num_slots(prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> int:
  """Positions that a row of the KV cache has room for."""
  ends = [len(p) + n for p, n in zip(prompts, limits, strict=True)]
  shared = common_prefix(prompts)
  longest = max(len(p) - shared for p in prompts)
  return _round_up(max(max(ends), shared + _round_up(longest, 8)), 16)


def _round_up(count: int, multiple: int) -> int:
  return -(-count // multiple) * multiple


def _pack(
  rests: Sequence[tuple[int, ...]], packed: tuple[int, int], most: int
) -> list[_Batch]:
  """Distinct prompts, shortest first, as many at a time as fit `packed` rows.

  Args:
    rests: what is run of each row's prompt.
    packed: rows and tokens of each.
    most: rows to sample per batch; more samples of a prompt are split.
  """
  rows: dict[tuple[int, ...], list[int]] = {}
  for i, rest in enumerate(rests):
    rows.setdefault(rest, []).append(i)
  count, length = packed
  out: list[_Batch] = []
  r, filled = count, 0  # of the newest batch
  for rest in sorted(rows, key=lambda rest: (len(rest), rows[rest][0])):
    for at in range(0, len(rows[rest]), most):
      members = rows[rest][at : at + most]
      if filled + len(rest) > length:
        r, filled = r + 1, 0
      if r >= count or len(out[-1].rows) + len(members) > most:
        out.append(_Batch([], []))
        r, filled = 0, 0
      out[-1].rows.extend(members)
      out[-1].place.extend([(r, filled)] * len(members))
      filled += len(rest)
  return out


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
  prompts: Sequence[Sequence[int]], max_length: int, max_new_tokens: int
) -> None:
  """Raises ValueError for a prompt that is empty or leaves no room."""
  for i, prompt in enumerate(prompts):
    if not 0 < len(prompt) <= max_length - max_new_tokens:
      raise ValueError(
        f"prompt {i} has {len(prompt)} tokens; with {max_new_tokens} new "
        f"tokens and a context of {max_length} it must have 1 to "
        f"{max_length - max_new_tokens}"
      )


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
  """How many first tokens all prompts share, down to a multiple of 8.

  Every prompt keeps at least one token of its own. The multiple bounds the
  number of programs that are compiled.
  """
  shortest = min(len(p) for p in prompts)
  columns = zip(*prompts, strict=False)
  same = next((i for i, c in enumerate(columns) if len(set(c)) > 1), shortest)
  return min(same, shortest - 1) // 8 * 8
