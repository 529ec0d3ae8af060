"""Global batches as a pure function of (rows, seed, step).

There is no iterator and so no iterator state: a resumed run, or one on another
number of hosts, computes the same batch for the same step.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence

import numpy as np

from bct_jax.data.chat import Tokens
from bct_jax.types import Rows

# Row lengths and trained counts are rounded up to a multiple of this, so that
# data sets of nearly equal length share one compiled step.
_ROUND = 8


def _round_up(n: int) -> int:
  return -(-n // _ROUND) * _ROUND


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Training rows of one arm, all padded to the same length.

  Attributes:
    ids: a name per row, for messages.
    rows: tokens and weights.
    batch_size: rows per step.
    seed: of the order.
    length: T of every batch.
    num_trained: R of every batch, see types.Batch.
  """

  ids: tuple[str, ...]
  rows: tuple[Tokens, ...]
  batch_size: int
  seed: int
  length: int
  num_trained: int

  @classmethod
  def make(
    cls,
    ids: Sequence[str],
    rows: Sequence[Tokens],
    batch_size: int,
    seed: int,
    max_length: int,
  ) -> "Dataset":
    """Checks the rows.

    Raises:
      ValueError: a row is longer than `max_length` (nothing is cut), trains
        nothing, or there are fewer rows than a batch.
    """
    for name, row in zip(ids, rows, strict=True):
      if len(row.ids) > max_length:
        raise ValueError(
          f"example {name} has {len(row.ids)} tokens, max_length is "
          f"{max_length}: raise it or drop the example"
        )
      if not any(w > 0 for w in row.weights):
        raise ValueError(f"example {name} has no trained token")
    if len(rows) < batch_size:
      raise ValueError(f"{len(rows)} examples, a batch needs {batch_size}")
    return cls(
      ids=tuple(ids),
      rows=tuple(rows),
      batch_size=batch_size,
      seed=seed,
      # The last id is only ever a target, so a row has one position less.
      length=_round_up(max(len(r.ids) for r in rows) - 1),
      num_trained=_round_up(max(sum(w > 0 for w in r.weights) for r in rows)),
    )

  @functools.cached_property
  def hash(self) -> str:
    """Content hash of ids, tokens and weights in order."""
    digest = hashlib.sha256()
    for name, row in zip(self.ids, self.rows, strict=True):
      digest.update(repr((name, row.ids, row.weights)).encode())
    return digest.hexdigest()

  def indices(self, step: int) -> np.ndarray:  # [B]
    """Rows of a step: epochs of seeded permutations, laid end to end."""
    count, size = len(self.rows), self.batch_size
    epochs = range(step * size // count, ((step + 1) * size - 1) // count + 1)
    order = np.concatenate([_permutation(count, self.seed, e) for e in epochs])
    start = step * size - epochs[0] * count
    return order[start : start + size]

  def batch(self, step: int) -> Rows:
    """The global batch of a step, as host arrays."""
    return pad(
      [self.rows[i] for i in self.indices(step)], self.length, self.num_trained
    )

  def batch_ids(self, step: int) -> list[str]:
    return [self.ids[i] for i in self.indices(step)]


def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(count)


def pad(rows: Sequence[Tokens], length: int, num_trained: int) -> Rows:
  """Right-pads rows to [B, length] and shifts the targets.

  Position t holds token t and predicts token t + 1, with that token's weight.
  """
  shape = (len(rows), length)
  out = Rows(
    tokens=np.zeros(shape, np.int32),
    targets=np.zeros(shape, np.int32),
    weights=np.zeros(shape, np.float32),
    positions=np.zeros(shape, np.int32),
    segments=np.zeros(shape, np.int32),
    num_trained=num_trained,
  )
  for i, row in enumerate(rows):
    n = len(row.ids) - 1
    out.tokens[i, :n] = row.ids[:-1]
    out.targets[i, :n] = row.ids[1:]
    out.weights[i, :n] = row.weights[1:]
    out.positions[i, :n] = np.arange(n)
    out.segments[i, :n] = 1
  return out
