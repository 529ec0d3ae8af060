"""Chooses where an arm is evaluated next, once it is trained: `eval.refine`.

Evals at the steps of the config leave two brackets: the style began to last
somewhere between two of them, and the initial behavior was gone somewhere
between two. Each further eval halves a bracket, until it is one update wide.
Then the updates behind each crossing are evaluated, as a crossing has to last.

A new eval can show that a crossing did not last and lies elsewhere. So every
choice is made from the curve as it is, and nothing else is remembered. Pure
Python.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping

from bct_jax.evals.crossings import Crossing

# Updates behind a crossing that are evaluated too.
BEHIND = 2


@dataclasses.dataclass(frozen=True)
class Placement:
  """Says where the next eval is.

  Attributes:
    step: of the eval, in updates done.
    lower: the lowest step at which the evals that follow can be needed, less
      one: the lower end of the bracket that is halved, or `step` itself.
    why: for the terminal.
  """

  step: int
  lower: int
  why: str


def place_eval(
  steps: Collection[int],
  crossings: Mapping[str, Crossing],
  last: int,
  left: int,
) -> Placement | None:
  """Chooses the next eval of an arm.

  Crossings are treated in order of steps, so that updates are mostly made
  forwards. What lies behind a crossing is evaluated when enough evals are left
  to halve all other brackets down to one update.

  Args:
    steps: of the evals that are there.
    crossings: what began to last between which of them, by name.
    last: the arm's last update.
    left: how many evals may follow.

  Returns:
    Where the next one is. None if none is left, or nothing is to be found.
  """
  if left < 1:
    return None
  found = [
    (c.by, c.after, name)
    for name, c in crossings.items()
    if c.by is not None and c.after is not None
  ]
  found.sort(key=lambda x: x[:2])
  for i, (by, after, name) in enumerate(found):
    if by - after > 1:
      why = f"the {name} is one of {after + 1} to {by}"
      return Placement((after + by) // 2, after, why)
    behind = range(by + 1, min(by + BEHIND, last) + 1)
    missing = [step for step in behind if step not in steps]
    # A bracket of w updates takes at most log2(w) evals.
    others = sum(math.ceil(math.log2(b - a)) for b, a, _ in found[i + 1 :])
    if missing and left > others:
      why = f"the {name}, {by}, has to last"
      return Placement(missing[0], missing[0], why)
  return None
