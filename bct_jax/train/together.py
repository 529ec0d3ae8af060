"""Updates several arms at once, in turn or in one program."""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from bct_jax.train.step import Step
from bct_jax.types import Batch, PyTree, TrainState


class Update(Protocol):
  """Does one update of several arms."""

  def __call__(
    self,
    states: Sequence[TrainState],
    frozen: PyTree,
    batches: Sequence[Batch | None],
    lrs: Sequence[float],
  ) -> tuple[list[TrainState], list[dict[str, Any]]]:
    """Updates each state that has a batch; the others stay as they are.

    Args:
      states: those that have a batch are donated.
      frozen: the params that all updates read and leave as they are.
      batches, lrs: of each state; at least one batch is not None.

    Returns:
      The states, and the metrics of each; {} for a state that stays.
    """
    ...


def update_in_turn(step: Step) -> Update:
  """Makes an update that runs the program of one arm for each in turn.

  The numbers of an arm are those of the arm trained alone.
  """

  def update(states, frozen, batches, lrs):
    out = [
      (state, {}) if b is None else step(state, frozen, b, jnp.float32(lr))
      for state, b, lr in zip(states, batches, lrs, strict=True)
    ]
    return [state for state, _ in out], [metrics for _, metrics in out]

  return update


@functools.lru_cache(maxsize=8)
def update_in_one_program(step: Step) -> Update:
  """Makes an update of all states in one program.

  The program reads the frozen params once for all arms. An arm is a slice of an
  axis over arms, so no arm has a part in another's gradient, its norm or its
  clipping. In the place of a state that stays as it is, a copy of another state
  goes through the program: with another number of arms XLA would round the
  others differently. Rows are spread over devices as they are for one arm.

  Args:
    step: of one arm, see make_train_step.

  Returns:
    An update that compiles once for each number of states. Its batches must be
    of one shape.
  """
  step_of_each = jax.vmap(step, in_axes=(0, None, 0, 0))

  def all_of(states, frozen, batches, lrs):
    def stacked(trees):
      return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    updated = step_of_each(stacked(states), frozen, stacked(batches), lrs)
    count = len(states)
    return [jax.tree.map(lambda x, i=i: x[i], updated) for i in range(count)]

  programs = {}

  def update(states, frozen, batches, lrs):
    moving = [i for i, batch in enumerate(batches) if batch is not None]
    first, count = moving[0], len(states)
    if count not in programs:
      place = jax.tree.map(lambda x: x.sharding, states[first])
      programs[count] = jax.jit(
        all_of, out_shardings=[(place, place.step)] * count, donate_argnums=0
      )
    arms = range(count)
    updated = programs[count](
      # Donated, so that a state cannot go in twice.
      [states[i] if i in moving else _copy(states[first]) for i in arms],
      frozen,
      [batches[i if i in moving else first] for i in arms],
      np.asarray(lrs, np.float32),
    )
    out = [updated[i] if i in moving else (states[i], {}) for i in arms]
    return [state for state, _ in out], [metrics for _, metrics in out]

  return update


def update_at_place(update: Update, place: int, count: int) -> Update:
  """Makes an update of one arm by a program of several.

  The others' places are filled as those of states that stay as they are. What
  an arm becomes does not depend on what goes through beside it.

  Args:
    update: of `update_in_one_program`.
    place: of the arm among the states of the program, from 0.
    count: how many states the program has.
  """

  def update_one(states, frozen, batches, lrs):
    batch_at = [batches[0] if i == place else None for i in range(count)]
    new, metrics = update([*states] * count, frozen, batch_at, [*lrs] * count)
    return [new[place]], [metrics[place]]

  return update_one


@jax.jit
def _copy(tree: PyTree) -> PyTree:
  """Copies arrays into memory of their own."""
  return jax.tree.map(jnp.copy, tree)
