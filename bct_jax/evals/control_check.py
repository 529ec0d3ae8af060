"""Compares the reading of a control with what is expected of it. Pure Python.

config/controls.py says what is expected, and why.
"""

import dataclasses
from typing import Literal

from bct_jax.config import CONTROLS

Status = Literal["as expected", "missed", "undecided"]
# Words of a reading that say that nothing can be said.
_OPEN = ("mixed", "ungraded", "unknown", "not asked")
MISSED = "control missed"  # how a missed control is marked


@dataclasses.dataclass(frozen=True)
class ControlCheck:
  """Says whether a control was read as expected.

  Attributes:
    status: "missed" if a word contradicts what is expected; else "undecided" if
      a word decides nothing.
    found: each word that is not the expected one: "behavior lost, not kept".
    why: what that means.
  """

  status: Status
  found: tuple[str, ...]
  why: str

  def sentence(self) -> str:
    """Describes it: "control missed: behavior lost, not kept (why)"."""
    if self.status == "as expected":
      return "control as expected"
    return f"control {self.status}: {'; '.join(self.found)} ({self.why})"


def check_control(
  control: str, behavior: str, integrity: str, progress: str
) -> ControlCheck:
  """Compares the three words of a control with those that are expected.

  Args:
    control: a key of `CONTROLS`.
    behavior, integrity, progress: the words of its reading.
  """
  expected = CONTROLS[control].expected
  words = {
    "behavior": (behavior, expected.behavior),
    "integrity": (integrity, expected.integrity),
    "progress": (progress, expected.progress),
  }
  off = {k: v for k, v in words.items() if v[1] and v[0] != v[1]}
  missed = any(word not in _OPEN for word, _ in off.values())
  return ControlCheck(
    "missed" if missed else "undecided" if off else "as expected",
    tuple(f"{k} {word}, not {wanted}" for k, (word, wanted) in off.items()),
    expected.why,
  )
