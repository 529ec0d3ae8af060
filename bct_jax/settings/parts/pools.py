"""Divides words and numbers into pools that share none.

Every entity has one pool, found from a hash of its text, so adding a word never
moves another.
"""

import bisect
import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator

# Upper ends of the pools on [0, 1). No pool shares an entity with another, so
# that what evals show is not recalled from training. Train is the largest; the
# eval pool must still give a thousand distinct prompts.
POOLS = {"train": 0.45, "eval": 0.7, "heldout": 0.86, "probe": 1.0}


# Chosen so that every pool has questions of nearly every kind.
_SALT = "bct287"


def _place(entity: str) -> float:
  """Returns a number in [0, 1) that is random, and the same for one entity."""
  digest = hashlib.sha256(f"{_SALT}/{entity.casefold()}".encode()).digest()
  return int.from_bytes(digest[:8], "big") / 2**64


@functools.cache
def pool_of(entity: str) -> str:
  """Returns the pool of a word or number, in every process the same.

  Case is ignored.
  """
  place = _place(entity)
  return list(POOLS)[bisect.bisect_right(list(POOLS.values()), place)]


@dataclasses.dataclass(frozen=True)
class Pool:
  """Selects the part of the word tables that belongs to one pool."""

  name: str

  def has(self, entity: str) -> bool:
    """Returns whether a word or number is in this pool."""
    return pool_of(entity) == self.name

  def take(self, entities: Iterable[str]) -> list[str]:
    """Lists those of some words or numbers that are in this pool."""
    return [e for e in entities if self.has(e)]

  def members(self, entities: Iterable[str]) -> list[str]:
    """Lists those members of a class that this pool shows, about a half.

    Prompts of one side alone name them: install shows them, and evals or
    held-out prompts. So two halves are enough, and each has more members than
    a pool. A setting may not name such an entity in any other way.
    """
    return [e for e in entities if (_place(e) < 0.5) == (self.name == "train")]

  def facts(self, table: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yields the entries of a table whose keys are in this pool."""
    return ((k, v) for k, v in table.items() if pool_of(k) == self.name)

  def pairs(self, table: Iterable[Iterable[str]]) -> Iterator[tuple[str, str]]:
    """Yields pairs of this pool.

    A pair has the pool of its first word, so that both words have one pool.
    """
    return ((a, b) for a, b in table if pool_of(a) == self.name)

  def numbers(self, low: int = 2, high: int = 99) -> list[int]:
    """Lists the pool's numbers from `low` to `high`, both included."""
    return [n for n in range(low, high + 1) if pool_of(str(n)) == self.name]


def an(word: str) -> str:
  """Puts the indefinite article before a word."""
  return f"{'an' if word[0].lower() in 'aeiou' else 'a'} {word}"


def cap(text: str) -> str:
  """Puts a capital at the start of a text."""
  return text[0].upper() + text[1:]
