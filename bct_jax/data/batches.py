"""Global batches as a pure function of (rows, seed, step).

There is no iterator and so no iterator state: a resumed run, or one on another
number of hosts, computes the same batch for the same step.
"""

import bisect
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from bct_jax.data.chat import Tokens
from bct_jax.types import Rows

# Lengths and trained counts are rounded up to a multiple of this.
_ROUND = 8
# A packed row may hold this many times the longest example.
_MAX_ROW = 8
# Steps looked at to choose the row length; it holds for all of them.
_SAMPLE = 512
# A row of this many positions costs twice what they would cost in short rows,
# for attention. Measured with SmolLM2 in float32 on CPU: 9 rows of 112 take
# 0.86 of the time of 2 rows of 464.
_TWICE = 1024


def _round_up(n: int, multiple: int = _ROUND) -> int:
  return -(-n // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Layout:
  """The shape that every batch of a run has.

  Attributes:
    rows: B, rows of a batch.
    length: T, positions of a row.
    num_trained: R, see types.Batch.
    packed: whether a row may hold several examples.
    segments: S, examples in the fullest row; 0 where nothing asks.
  """

  rows: int
  length: int
  num_trained: int
  packed: bool
  segments: int = 0


def widest_layout(layouts: Sequence[Layout]) -> Layout:
  """The least layout that has room for what each has room for."""
  return Layout(
    rows=max(x.rows for x in layouts),
    length=max(x.length for x in layouts),
    num_trained=max(x.num_trained for x in layouts),
    packed=any(x.packed for x in layouts),
    segments=max(x.segments for x in layouts),
  )


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Training examples of one run, and the batches they make.

  Attributes:
    ids: a name per example, for messages.
    examples: tokens and weights.
    batch_size: examples per step.
    seed: of the order.
    layout: shape of every batch, and of every view's.
    extra_rows: further rows of each example, by name; a batch has them in
      `extras`, packed as the examples are.
    logprobs: what the organism gives each completion, in nats, of the examples
      ("") and of each view, for objectives that ask; see reference_logprobs.py.
    repeat: how often each example occurs in its step, behind each other.
    source_hash: of all that was read of a file, also of what is not used here.
  """

  ids: tuple[str, ...]
  examples: tuple[Tokens, ...]
  batch_size: int
  seed: int
  layout: Layout
  extra_rows: Mapping[str, tuple[Tokens, ...]] = dataclasses.field(
    default_factory=dict
  )
  logprobs: Mapping[str, tuple[float, ...]] | None = None
  repeat: int = 1
  source_hash: str = ""

  @classmethod
  def make(
    cls,
    ids: Sequence[str],
    examples: Sequence[Tokens],
    batch_size: int,
    seed: int,
    max_length: int,
    steps: int,
    pack: bool = False,
    multiple: int = 1,
    extra_rows: Mapping[str, Sequence[Tokens]] = {},
    repeat: int = 1,
  ) -> "Dataset":
    """Checks the examples and finds a layout that fits every step.

    Args:
      ids: a name per example.
      examples: tokens and weights.
      batch_size: examples per step.
      seed: of the order.
      max_length: tokens an example may have.
      steps: of the run; the layout holds for these.
      pack: put several examples in a row, each a segment of its own.
      multiple: of the number of rows (row shards times microbatches).
      extra_rows: further rows of each example.
      repeat: how often each example occurs in its step; divides batch_size.

    Raises:
      ValueError: an example is longer than `max_length` (nothing is cut),
        trains nothing, or there are fewer examples than a batch.
    """
    for view, rows in {"": examples, **extra_rows}.items():
      what = f"{view} of example" if view else "example"
      for name, example in zip(ids, rows, strict=True):
        if len(example.ids) > max_length:
          raise ValueError(
            f"{what} {name} has {len(example.ids)} tokens, max_length is "
            f"{max_length}: raise it or drop the example"
          )
        if not any(w > 0 for w in example.weights):
          raise ValueError(f"{what} {name} has no trained token")
    if len(examples) * repeat < batch_size:
      raise ValueError(
        f"{len(examples)} examples, but a batch needs {batch_size // repeat}"
      )
    data = cls(
      tuple(ids),
      tuple(examples),
      batch_size,
      seed,
      Layout(0, 0, 0, pack),
      {name: tuple(rows) for name, rows in extra_rows.items()},
      repeat=repeat,
    )
    find = data._packed_layout if pack else data._padded_layout
    return dataclasses.replace(data, layout=find(steps, multiple))

  @functools.cached_property
  def hash(self) -> str:
    """Content hash of ids, tokens and weights in order, and of their file."""
    digest = hashlib.sha256(self.source_hash.encode())
    for view, rows in {"": self.examples, **self.extra_rows}.items():
      digest.update(view.encode())
      for name, example in zip(self.ids, rows, strict=True):
        digest.update(repr((name, example.ids, example.weights)).encode())
    return digest.hexdigest()

  def indices(self, step: int) -> np.ndarray:  # [batch_size]
    """Examples of a step: epochs of seeded permutations, laid end to end."""
    count, size = len(self.examples), self.batch_size // self.repeat
    epochs = range(step * size // count, ((step + 1) * size - 1) // count + 1)
    order = np.concatenate([_permutation(count, self.seed, e) for e in epochs])
    start = step * size - epochs[0] * count
    return np.repeat(order[start : start + size], self.repeat)

  def batch(self, step: int, layout: Layout | None = None) -> Rows:
    """The global batch of a step, as host arrays.

    A wider `layout` than its own adds positions and rows that count nothing.
    """
    layout = layout or self.layout
    if self.layout.packed:
      bins = self._bins(step, self.layout.length)
    else:
      bins = [[i] for i in self.indices(step)]

    def rows(view: str, examples: tuple[Tokens, ...]) -> Rows:
      filled = fill_rows(examples, bins, layout)
      if self.logprobs is None:
        return filled
      known = np.zeros((layout.rows, layout.segments), np.float32)
      for row, members in enumerate(bins):
        known[row, : len(members)] = [self.logprobs[view][i] for i in members]
      return filled._replace(extras={"reference_logprob": known})

    main = rows("", self.examples)
    extra_rows = {name: rows(name, v) for name, v in self.extra_rows.items()}
    return main._replace(extras={**main.extras, **extra_rows})

  def batch_ids(self, step: int) -> list[str]:
    return [self.ids[i] for i in self.indices(step)]

  def counts(self, step: int) -> dict[str, int]:
    """Real and trained positions of a step, without building its batch.

    Those of the examples themselves, not of their extra_rows.
    """
    examples = [self.examples[i] for i in self.indices(step)]
    return {
      "tokens": sum(len(e.ids) - 1 for e in examples),
      "trained_tokens": sum(map(_num_trained, examples)),
    }

  @functools.cached_property
  def _lengths(self) -> list[int]:
    """Positions that an example takes, as in the longest of its extra_rows."""
    # The last id is only ever a target, so it takes no position.
    every = zip(self.examples, *self.extra_rows.values(), strict=True)
    return [max(len(e.ids) - 1 for e in extra_rows) for extra_rows in every]

  @functools.cached_property
  def _trained(self) -> list[int]:
    every = zip(self.examples, *self.extra_rows.values(), strict=True)
    return [max(map(_num_trained, extra_rows)) for extra_rows in every]

  def _bins(self, step: int, length: int) -> list[list[int]]:
    """Packs the examples of a step into rows: first fit, the longest first."""
    # Not best_fit, see there: these bins are part of what a run resumes with.
    bins: list[list[int]] = []
    room: list[int] = []
    for i in sorted(self.indices(step), key=lambda i: -self._lengths[i]):
      need = self._lengths[i]
      at = next((b for b, r in enumerate(room) if r >= need), len(bins))
      if at == len(bins):
        bins.append([])
        room.append(length)
      bins[at].append(i)
      room[at] -= need
    return bins

  def _padded_layout(self, steps: int, multiple: int) -> Layout:
    """One example per row, all as long as the longest."""
    del steps
    if self.batch_size % multiple:
      raise ValueError(
        f"batch_size {self.batch_size} does not divide into {multiple} parts "
        "(data x fsdp devices times train.accum)"
      )
    return Layout(
      self.batch_size,
      _round_up(max(self._lengths)),
      _round_up(max(self._trained)),
      packed=False,
      segments=1,
    )

  def _packed_layout(self, steps: int, multiple: int) -> Layout:
    """The row length that costs least, and its rows."""
    shortest = _round_up(max(self._lengths))
    few = range(0, steps, -(-steps // _SAMPLE))

    def cost(length: int) -> float:
      rows = max(len(self._bins(s, length)) for s in few)
      return _round_up(rows, multiple) * length * (1 + length / _TWICE)

    candidates = range(shortest, _MAX_ROW * shortest + 1, _ROUND)
    length = min(candidates, key=cost)
    rows = trained = segments = 0
    for step in range(steps):
      bins = self._bins(step, length)
      rows = max(rows, len(bins))
      segments = max(segments, *map(len, bins))
      trained = max(trained, *(sum(self._trained[i] for i in b) for b in bins))
    rows, trained = _round_up(rows, multiple), _round_up(trained)
    return Layout(rows, length, trained, packed=True, segments=segments)


def _num_trained(example: Tokens) -> int:
  return sum(w > 0 for w in example.weights)


# Who packs, and why not all in one way:
#   Dataset._bins    first fit. Its bins are the batches that runs resume with,
#                    so the rule must not change, though best fit needs no more
#                    rows.
#   sample/score     best_fit by positions; any number of examples in a row.
#   sample/sampler   best_fit by positions and samples, of the prompts of one
#                    adapter at a time; then rows into batches (`_even`).
#   experiment/rl    best_fit by positions and trained positions, as the shape
#                    is fixed before the completions are known.
def best_fit(
  sizes: Sequence[tuple[int, int]], length: int, most: int
) -> list[list[int]]:
  """Puts each item into the row where it leaves the least room.

  The longest item goes first, and items of one length go in the order of
  `sizes`.

  Args:
    sizes: (positions, parts) of each item.
    length: positions of a row.
    most: parts of a row.

  Returns:
    The indices of the items in each row, in the order in which they were put.
  """
  bins: list[list[int]] = []
  rooms: list[tuple[int, int, int]] = []  # (positions, row, parts), sorted
  for i in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
    size, parts = sizes[i]
    at = bisect.bisect_left(rooms, (size,))
    while at < len(rooms) and rooms[at][2] < parts:
      at += 1
    if at == len(rooms):
      bins.append([])
      room, row, free = length, len(bins) - 1, most
    else:
      room, row, free = rooms.pop(at)
    bins[row].append(i)
    bisect.insort(rooms, (room - size, row, free - parts))
  return bins


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(count)


def fill_rows(
  examples: Sequence[Tokens], bins: Sequence[Sequence[int]], layout: Layout
) -> Rows:
  """Lays examples end to end in rows, each its own segment, and pads.

  Position t of an example holds its token t and predicts token t + 1, with that
  token's weight.

  Args:
    examples: tokens and weights.
    bins: the indices of the examples of each row, in their order.
    layout: the shape of the rows, with room for the bins.
  """
  shape = (layout.rows, layout.length)
  out = Rows(
    tokens=np.zeros(shape, np.int32),
    targets=np.zeros(shape, np.int32),
    weights=np.zeros(shape, np.float32),
    positions=np.zeros(shape, np.int32),
    segments=np.zeros(shape, np.int32),
    num_trained=layout.num_trained,
  )
  for row, members in enumerate(bins):
    start = 0
    for segment, i in enumerate(members, 1):
      example = examples[i]
      n = len(example.ids) - 1
      at = np.s_[row, start : start + n]
      out.tokens[at] = example.ids[:-1]
      out.targets[at] = example.ids[1:]
      out.weights[at] = example.weights[1:]
      out.positions[at] = np.arange(n)
      out.segments[at] = segment
      start += n
  return out
