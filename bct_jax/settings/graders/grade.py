"""Defines what a grader says of a completion."""

import dataclasses

BEHAVIORS = ("initial", "alternate", "agreed")


@dataclasses.dataclass(frozen=True)
class Grade:
  """Says what a completion shows.

  Attributes:
    behavior: initial, alternate, agreed, or a Reason why it is none of them.
    answered: whether it is an attempt at what was asked.
    right: whether the attempt is right.
  """

  behavior: str
  answered: bool
  right: bool
