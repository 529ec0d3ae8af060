"""Lists the update steps at which an arm is evaluated."""

from collections.abc import Sequence

from bct_jax.config import ArmConfig, EvalConfig, ExperimentConfig


def eval_steps(listed_steps: Sequence[int], steps: int) -> tuple[int, ...]:
  """Returns the listed steps up to the last one, with 0 and the last one.

  Args:
    listed_steps: updates after which the config asks for an eval.
    steps: how many updates the arm has.
  """
  return tuple(sorted({0, steps, *(s for s in listed_steps if s <= steps)}))


def task_steps(evals: EvalConfig, steps: int) -> tuple[int, ...]:
  """Returns the steps of an arm at which lm-eval's tasks are run."""
  return eval_steps(evals.task_steps, steps) if evals.tasks else ()


def observed_steps(config: ExperimentConfig, arm: ArmConfig) -> tuple[int, ...]:
  """Returns the steps of all evals of an arm, with those of its tasks."""
  steps = arm.train.steps
  with_tasks = task_steps(config.eval, steps)
  return eval_steps((*config.eval_steps(arm), *with_tasks), steps)
