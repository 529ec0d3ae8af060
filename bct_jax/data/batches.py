"""Makes global batches as a pure function of (examples, seed, step).

There is no iterator, so there is no iterator state to save. A resumed run
computes the same batch for the same step. So does a run on another number of
hosts.
"""

# How examples become the rows of a step, with 5 examples, batch_size 4, packed:
#
#   make     once: looks at every step, chooses rows x length that hold them all
#   indices  epochs are seeded permutations, laid end to end and cut into steps:
#              epoch 0: 3 0 2 4 1     epoch 1: 1 4 0 3 2 ...
#              step 0: 3 0 2 4 | step 1: 1 1 4 0 | step 2: 3 2 ...
#   bins     the longest first, each into the first row with room:
#              step 0: [[2, 3], [4, 0]]
#   fill     tokens     2 2 2 2 2 3 3 .    (. is padding, of weight 0)
#            segments   1 1 1 1 1 2 2 0    attention stays within a segment
#            positions  0 1 2 3 4 0 1 0    and restarts in each
#
# The training loop asks for the batch of step s + 1 while the devices run step
# s: it reads the metrics of s only later (see train/loop.py). So no device
# waits for what is done here, unless it takes longer than a step.

import bisect
import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from bct_jax.data.chat import Tokens
from bct_jax.types import Rows

# Lengths and counts of trained positions are rounded up to a multiple of this.
_ROUND = 8
# A packed row may be this many times as long as the longest example.
_MAX_ROW = 8
# The row length is chosen by the cost of this many steps: of all, it is slow.
_SAMPLE = 512
# A row of this many positions costs twice what they would cost in short rows,
# for attention. Measured with SmolLM2 in float32 on CPU: 9 rows of 112 take
# 0.86 of the time of 2 rows of 464.
_TWICE = 1024


def round_up(n: int, multiple: int = _ROUND) -> int:
  """Returns the least multiple that is not below n."""
  return -(-n // multiple) * multiple


@dataclasses.dataclass(frozen=True)
class Layout:
  """Describes the shape that every batch of a run has.

  Attributes:
    rows: B, rows of a batch.
    length: T, positions of a row.
    num_trained: R, see types.Batch.
    packed: whether a row may hold several examples.
    segments: S, examples in the fullest row; 0 where nothing reads it.
  """

  rows: int
  length: int
  num_trained: int
  packed: bool
  segments: int = 0


def widest_layout(layouts: Sequence[Layout]) -> Layout:
  """Returns the smallest layout into which every batch of `layouts` fits."""
  return Layout(
    rows=max(x.rows for x in layouts),
    length=max(x.length for x in layouts),
    num_trained=max(x.num_trained for x in layouts),
    packed=any(x.packed for x in layouts),
    segments=max(x.segments for x in layouts),
  )


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Holds the training examples of one run and makes its batches.

  Attributes:
    ids: a name per example, for messages.
    examples: tokens and weights.
    batch_size: examples per step.
    seed: of the order of examples.
    layout: the shape of every batch, also of extra rows.
    extra_rows: further rows of each example, by name. A batch has them in
      `extras`, packed as the examples are.
    logprobs: log p(completion | prompt) under the organism, in nats, of the
      examples ("") and of each kind of extra rows. None where the objective
      does not compare with it; see experiment/reference_logprobs.py.
    repeat: how often each example occurs in its step, as neighbours.
    source_hash: of all that was read of a file, also of unused examples.
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
    """Checks the examples and chooses a layout that fits every step.

    Args:
      ids: a name per example.
      examples: tokens and weights.
      batch_size: examples per step.
      seed: of the order of examples.
      max_length: tokens that an example may have.
      steps: number of steps of the run; the layout holds for these.
      pack: whether to put several examples in a row, each in its own segment.
      multiple: what the number of rows is rounded up to (row shards times
        microbatches).
      extra_rows: further rows of each example.
      repeat: how often each example occurs in its step; divides batch_size.

    Raises:
      ValueError: an example is longer than `max_length` (nothing is cut),
        trains nothing, or there are fewer examples than a batch.
    """
    for kind, rows in {"": examples, **extra_rows}.items():
      what = f"{kind} of example" if kind else "example"
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
    choose_layout = data._packed_layout if pack else data._padded_layout
    return dataclasses.replace(data, layout=choose_layout(steps, multiple))

  @functools.cached_property
  def hash(self) -> str:
    """Hashes ids, tokens and weights in their order, and `source_hash`."""
    digest = hashlib.sha256(self.source_hash.encode())
    for kind, rows in {"": self.examples, **self.extra_rows}.items():
      digest.update(kind.encode())
      for name, example in zip(self.ids, rows, strict=True):
        digest.update(repr((name, example.ids, example.weights)).encode())
    return digest.hexdigest()

  def indices(self, step: int) -> np.ndarray:  # [batch_size]
    """Returns the examples of a step, as indices.

    Epochs are seeded permutations. They are laid end to end and cut into steps.
    """
    count, size = len(self.examples), self.batch_size // self.repeat
    epochs = range(step * size // count, ((step + 1) * size - 1) // count + 1)
    order = np.concatenate([_permutation(count, self.seed, e) for e in epochs])
    start = step * size - epochs[0] * count
    return np.repeat(order[start : start + size], self.repeat)

  def batch(self, step: int, layout: Layout | None = None) -> Rows:
    """Returns the global batch of a step, as host arrays.

    Args:
      step: number of the update, from 0.
      layout: a wider layout than the dataset's own, for arms that run in one
        program. The positions and rows that it adds have weight 0.
    """
    layout = layout or self.layout
    if self.layout.packed:
      bins = self._bins(step, self.layout.length)
    else:
      bins = [[i] for i in self.indices(step)]

    def make_rows(kind: str, examples: tuple[Tokens, ...]) -> Rows:
      rows = fill_rows(examples, bins, layout)
      if self.logprobs is None:
        return rows
      logprobs = np.zeros((layout.rows, layout.segments), np.float32)
      for row, members in enumerate(bins):
        of_row = [self.logprobs[kind][i] for i in members]
        logprobs[row, : len(of_row)] = of_row
      return rows._replace(extras={"reference_logprob": logprobs})

    main = make_rows("", self.examples)
    extra_rows = {k: make_rows(k, v) for k, v in self.extra_rows.items()}
    return main._replace(extras={**main.extras, **extra_rows})

  def batch_ids(self, step: int) -> list[str]:
    """Returns the ids of the examples of a step."""
    return [self.ids[i] for i in self.indices(step)]

  def counts(self, step: int) -> dict[str, int]:
    """Counts real and trained positions of a step without making its batch.

    Extra rows are not counted.
    """
    examples = [self.examples[i] for i in self.indices(step)]
    return {
      "tokens": sum(len(e.ids) - 1 for e in examples),
      "trained_tokens": sum(map(_num_trained, examples)),
    }

  @functools.cached_property
  def _lengths(self) -> list[int]:
    """Counts the positions of each example, or of its longest extra row."""
    # The last id is only ever a target, so it takes no position.
    groups = zip(self.examples, *self.extra_rows.values(), strict=True)
    return [max(len(e.ids) - 1 for e in group) for group in groups]

  @functools.cached_property
  def _trained_lengths(self) -> list[int]:
    """Counts the trained positions of each example, as `_lengths` does."""
    groups = zip(self.examples, *self.extra_rows.values(), strict=True)
    return [max(map(_num_trained, group)) for group in groups]

  def _bins(self, step: int, length: int) -> list[list[int]]:
    """Packs the examples of a step into rows: first fit, the longest first."""
    # Not best_fit, see there: these bins are part of what a run resumes with.
    bins: list[list[int]] = []
    rooms: list[int] = []  # positions that are free, by row
    for i in sorted(self.indices(step), key=lambda i: -self._lengths[i]):
      size = self._lengths[i]
      row = next((r for r, n in enumerate(rooms) if n >= size), len(bins))
      if row == len(bins):
        bins.append([])
        rooms.append(length)
      bins[row].append(i)
      rooms[row] -= size
    return bins

  def _padded_layout(self, steps: int, multiple: int) -> Layout:
    """Gives each example its own row; all are as long as the longest."""
    del steps
    if self.batch_size % multiple:
      raise ValueError(
        f"batch_size {self.batch_size} does not divide into {multiple} parts "
        "(data x fsdp devices times train.accum)"
      )
    return Layout(
      self.batch_size,
      round_up(max(self._lengths)),
      round_up(max(self._trained_lengths)),
      packed=False,
      segments=1,
    )

  def _packed_layout(self, steps: int, multiple: int) -> Layout:
    """Chooses the row length that costs least, then rows for every step."""
    shortest = round_up(max(self._lengths))
    sample = range(0, steps, -(-steps // _SAMPLE))

    def cost(length: int) -> float:
      rows = max(len(self._bins(s, length)) for s in sample)
      return round_up(rows, multiple) * length * (1 + length / _TWICE)

    candidates = range(shortest, _MAX_ROW * shortest + 1, _ROUND)
    length = min(candidates, key=cost)
    rows = num_trained = segments = 0
    for step in range(steps):
      bins = self._bins(step, length)
      rows = max(rows, len(bins))
      segments = max(segments, *map(len, bins))
      counts = (sum(self._trained_lengths[i] for i in b) for b in bins)
      num_trained = max(num_trained, *counts)
    rows, num_trained = round_up(rows, multiple), round_up(num_trained)
    return Layout(rows, length, num_trained, packed=True, segments=segments)


def _num_trained(example: Tokens) -> int:
  """Counts the tokens of an example that have weight."""
  return sum(w > 0 for w in example.weights)


# Who packs, and why not all in one way:
#   Dataset._bins    first fit. Its bins are the batches that runs resume with,
#                    so the rule must not change, though best fit needs no more
#                    rows.
#   sample/score     best_fit by positions; any number of examples in a row.
#   sample/          best_fit by positions and samples, of the prompts of one
#   prompt_packing   adapter at a time; then rows into batches.
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
  # What is free in each row: (positions, row, parts), sorted.
  rooms: list[tuple[int, int, int]] = []
  for i in sorted(range(len(sizes)), key=lambda i: -sizes[i][0]):
    size, parts = sizes[i]
    # The first with enough positions has the fewest: `rooms` is sorted by them.
    at = bisect.bisect_left(rooms, (size,))
    while at < len(rooms) and rooms[at][2] < parts:
      at += 1
    if at == len(rooms):
      bins.append([])
      positions, row, parts_free = length, len(bins) - 1, most
    else:
      positions, row, parts_free = rooms.pop(at)
    bins[row].append(i)
    bisect.insort(rooms, (positions - size, row, parts_free - parts))
  return bins


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
  """Draws the order of the examples in an epoch, [count]."""
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
