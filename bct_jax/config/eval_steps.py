"""Lists the update steps at which an arm is evaluated."""

from collections.abc import Sequence

from bct_jax.config import EvalConfig


def eval_steps(wanted: Sequence[int], steps: int) -> tuple[int, ...]:
  """The wanted steps up to the last one, with 0 and the last one."""
  return tuple(sorted({0, steps, *(s for s in wanted if s <= steps)}))


def task_steps(evals: EvalConfig, steps: int) -> tuple[int, ...]:
  """Those of an arm's evals that have tasks."""
  return eval_steps(evals.task_steps, steps) if evals.tasks else ()


def observed_steps(evals: EvalConfig, steps: int) -> tuple[int, ...]:
  """All evals of an arm, also those that only tasks ask for."""
  return eval_steps((*evals.steps, *task_steps(evals, steps)), steps)
