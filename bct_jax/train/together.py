"""One update of several arms in one program."""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bct_jax.train.step import Step
from bct_jax.types import Batch, PyTree, TrainState


class Update(Protocol):
  def __call__(
    self,
    states: Sequence[TrainState],
    frozen: PyTree,
    batches: Sequence[Batch | None],
    lrs: Sequence[float],
  ) -> tuple[list[TrainState], list[dict[str, Any]]]:
    """An update of each state that has a batch; the others stay as they are.

    Args:
      states: those that have a batch are taken over.
      frozen: what all of them are given.
      batches, lrs: of each state; one batch at least is not None.

    Returns:
      The states, and the metrics of each; {} for one that stays.
    """
    ...


def update_in_turn(step: Step) -> Update:
  """Runs the program of one arm for each: numbers are those of it alone."""

  def update(states, frozen, batches, lrs):
    out = [
      (state, {}) if b is None else step(state, frozen, b, jnp.float32(lr))
      for state, b, lr in zip(states, batches, lrs, strict=True)
    ]
    return [state for state, _ in out], [metrics for _, metrics in out]

  return update


@functools.lru_cache(maxsize=8)
def update_in_one_program(step: Step) -> Update:
  """Updates all states in one program, which reads what is frozen once.

  An arm is a slice of an axis over arms, so none has a part in another's
  gradient, its norm or its clipping. In place of one that stays as it is a copy
  of another goes through the program, so that those are rounded as ever. Rows
  are spread over devices as they are for one arm.

  Args:
    step: of one arm, see make_train_step.

  Returns:
    An update that compiles once for each number of states. Its batches must be
    of one shape.
  """
  each = jax.vmap(step, in_axes=(0, None, 0, 0))

  def all_of(states, frozen, batches, lrs):
    def stacked(trees):
      return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    made = each(stacked(states), frozen, stacked(batches), lrs)
    every = range(len(states))
    return [jax.tree.map(lambda x, i=i: x[i], made) for i in every]

  programs = {}

  def update(states, frozen, batches, lrs):
    moving = [i for i, batch in enumerate(batches) if batch is not None]
    first, count = moving[0], len(states)
    if count not in programs:
      place = jax.tree.map(lambda x: x.sharding, states[first])
      programs[count] = jax.jit(
        all_of, out_shardings=[(place, place.step)] * count, donate_argnums=0
      )
    every = range(count)
    made = programs[count](
      [states[i] if i in moving else _copy(states[first]) for i in every],
      frozen,
      [batches[i if i in moving else first] for i in every],
      np.asarray(lrs, np.float32),
    )
    out = [made[i] if i in moving else (states[i], {}) for i in every]
    return [state for state, _ in out], [metrics for _, metrics in out]

  return update


@jax.jit
def _copy(tree: PyTree) -> PyTree:
  return jax.tree.map(jnp.copy, tree)
