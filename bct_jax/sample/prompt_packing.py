"""Packs prompts into rows, and rows into batches of one shape."""

import dataclasses
from collections.abc import Sequence

from bct_jax.data.batches import best_fit, round_up

# Tokens of a packed row, if no prompt is longer: attention costs their square.
LENGTH = 128


@dataclasses.dataclass
class PromptBatch:
  """Says which prompts are run together, and where they lie.

  Attributes:
    rows: indices of the rows to sample, those of one prompt behind each other.
    first: for each of these, where in the packed tokens its prompt begins.
    arms: of each packed row.
  """

  rows: list[int]
  first: list[int]
  arms: list[int]


# Rows a1 a2 a3 b1 c1 d1 of prompts A (of which 3 samples are drawn), B, C, D,
# where a batch samples at most 4 rows:
#
#   distinct prompts   A: a1 a2 a3   B: b1   C: c1   D: d1
#   bins, best fit     A A A B B . | C C C C D .      of `length` tokens each
#   batches            bin 1 samples 4 rows, so bin 2 begins the next batch
#   shape              `width` bins of `length` tokens, empty ones included, so
#                      that one program runs every batch
def pack_prompts(
  rests: Sequence[tuple[int, tuple[int, ...]]],
  tokens: int,
  shards: int,
  most: int,
  longest: int | None = None,
) -> tuple[list[PromptBatch], tuple[int, int]]:
  """Packs distinct prompts into rows, best fit first, and rows into batches.

  Args:
    rests: for each row its arm and the tokens of its prompt after the prefix.
    tokens: about how many are run together.
    shards: packed rows are a multiple of it.
    most: rows to sample per batch; further samples of a prompt run it again.
    longest: None lets the shape fit `rests`; a number bounds their lengths, and
      the shape depends on it and on how many prompts there are, alone.

  Returns:
    The batches and their shape (packed rows, tokens of each).
  """
  samples: dict[tuple[int, tuple[int, ...]], list[int]] = {}
  for row, key in enumerate(rests):
    samples.setdefault(key, []).append(row)
  bound = longest or max(len(rest) for _, rest in samples)
  length = round_up(max(bound, min(tokens, LENGTH)), 8)
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
  width = _even(rows, round_up(max(1, tokens // length), shards), shards)
  out: list[PromptBatch] = []
  r = width
  for arm, members in bins:
    if r == width or len(out[-1].rows) + sum(len(m[1]) for m in members) > most:
      out.append(PromptBatch([], [], []))
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
  """Chooses packed rows per batch, from half of `most` on, so that the fewest
  are empty."""
  widths = range(round_up(-(-most // 2), shards), most + 1, shards)
  return min(widths, key=lambda w: (-(-bins // w) * w, -w))


def num_slots(prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> int:
  """Returns how many positions a row of the KV cache has room for."""
  ends = [len(p) + n for p, n in zip(prompts, limits, strict=True)]
  shared = common_prefix(prompts)
  longest = max(len(p) - shared for p in prompts)
  return round_up(max(max(ends), shared + round_up(longest, 8)), 8)


def common_prefix(prompts: Sequence[Sequence[int]]) -> int:
  """Counts the first tokens that all prompts share, without the last of any."""
  shortest = min(len(p) for p in prompts)
  columns = zip(*prompts, strict=False)
  same = next((i for i, c in enumerate(columns) if len(set(c)) > 1), shortest)
  return min(same, shortest - 1)
