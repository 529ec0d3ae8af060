"""Draws entries from decks: without repeats, and alike in every process.

A deck is a sequence that may be far too long to be listed, such as all orders
of five numbers. Its entries are made when they are drawn.
"""

import dataclasses
import hashlib
import itertools
import random
from collections.abc import Iterator, Sequence
from typing import Any


def require_in_range(sequence: Sequence, index: int) -> None:
  """Raises IndexError for an index that is not in a sequence.

  A loop over a class with `__getitem__` ends by this error.
  """
  if not 0 <= index < len(sequence):
    raise IndexError(index)


@dataclasses.dataclass(frozen=True)
class Permutations(Sequence):
  """Holds all ordered choices of k distinct elements, as tuples.

  Each choice is made when it is asked for.
  """

  elements: Sequence[Any]
  k: int

  def __len__(self) -> int:
    size = 1
    for position in range(self.k):
      size *= max(len(self.elements) - position, 0)
    return size

  def __getitem__(self, index):
    require_in_range(self, index)
    rest = list(self.elements)
    entries = []
    for _ in range(self.k):
      index, position = divmod(index, len(rest))
      entries.append(rest.pop(position))
    return tuple(entries)


def shuffle_lazily(deck: Sequence[Any], rng: random.Random) -> Iterator[Any]:
  """Yields a deck in random order, without touching what is not asked for.

  This is the shuffle of Fisher and Yates, which stores swapped places only.
  """
  swaps: dict[int, int] = {}
  for i in range(len(deck)):
    j = rng.randrange(i, len(deck))
    yield deck[swaps.get(j, j)]
    swaps[j] = swaps.pop(i, i)


def draw_from_decks(
  decks: Sequence[Sequence[Any]], n: int, seed: int, stream: str
) -> list[Any]:
  """Draws n entries of several decks, which take turns.

  Args:
    decks: what to draw from; each is shuffled.
    n: how many; the first m of n are those of a call for m.
    seed: decides the order.
    stream: a name that makes the orders of two callers independent.

  Raises:
    ValueError: n is negative or larger than all decks together.
  """
  total = sum(map(len, decks))
  if not 0 <= n <= total:
    raise ValueError(f"{stream}: n must be from 0 to {total}, not {n}")
  rng = random.Random(f"{stream}/{seed}")
  # Each deck has a generator of its own: how many entries are drawn from the
  # others does not change its order.
  orders = [
    shuffle_lazily(deck, random.Random(f"{stream}/{i}/{seed}"))
    for i, deck in enumerate(decks)
  ]
  rng.shuffle(orders)
  rounds = itertools.zip_longest(*orders)
  entries = (item for row in rounds for item in row if item is not None)
  return list(itertools.islice(entries, n))


def pick_by_key(variants: Sequence[Any], *key: Any) -> Any:
  """Picks one of some variants, the same in every process for one key."""
  text = "/".join(map(str, key))
  digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
  return variants[int.from_bytes(digest[:8], "big") % len(variants)]
