"""Defines which model grades completions, and what it may cost."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
  """Names the model that grades, and what it may cost.

  All fields have defaults, since runs from before have none. The comments of
  `configs/default.py` say what each means.
  """

  model: str = ""
  rubric: str = ""
  max_tokens: int = 1024
  max_calls: int = 10_000
  max_retries: int = 5
  timeout: int = 120
  max_connections: int = 8

  def find_fault(self) -> str:
    """Returns what cannot be, with the name of the field; "" if nothing is."""
    for name, other in (("model", "rubric"), ("rubric", "model")):
      if getattr(self, name) and not getattr(self, other):
        return f"eval.judge.{other}: missing; eval.judge.{name} is set"
    for name in ("max_tokens", "timeout", "max_connections"):
      if getattr(self, name) <= 0:
        return f"eval.judge.{name}: must be positive"
    for name in ("max_calls", "max_retries"):
      if getattr(self, name) < 0:
        return f"eval.judge.{name}: must be 0 or more"
    return ""


# Fields that say what judging costs, and decide no label that is given.
COSTS = ("max_calls", "max_retries", "timeout", "max_connections")
