"""One update of several arms in one program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from bct_jax.train import Step, Update


@functools.lru_cache(maxsize=8)
def vmapped(step: Step) -> Update:
  """Updates all states in one program, which reads what is frozen once.

  An arm is a slice of an axis over arms, so none has a part in another's
  gradient, its norm or its clipping. One that stays as it is goes through the
  program all the same, so that the others are rounded as ever; what comes out
  for it is dropped. Rows are spread over devices as they are for one arm.

  Args:
    step: of one arm, see make_train_step.

  Returns:
    An update that compiles once for each number of states. Its batches must be
    of one shape.
  """
  each = jax.vmap(step, in_axes=(0, None, 0, 0))

  def all_of(states, frozen, batches, lrs, moves):
    def stacked(trees):
      return jax.tree.map(lambda *x: jnp.stack(x), *trees)

    made, metrics = each(stacked(states), frozen, stacked(batches), lrs)

    def own(i, state):
      def one(new, old):
        return jnp.where(moves[i], new[i], old)

      return jax.tree.map(one, made, state), {
        k: x[i] for k, x in metrics.items()
      }

    return [own(i, state) for i, state in enumerate(states)]

  programs = {}

  def update(states, frozen, batches, lrs):
    if len(states) not in programs:
      place = jax.tree.map(lambda x: x.sharding, states[0])
      programs[len(states)] = jax.jit(
        all_of,
        out_shardings=[(place, place.step)] * len(states),
        donate_argnums=0,
      )
    filling = next(b for b in batches if b is not None)
    moves = [b is not None for b in batches]
    out = programs[len(states)](
      list(states),
      frozen,
      [filling if b is None else b for b in batches],
      np.asarray(lrs, np.float32),
      np.asarray(moves),
    )
    metrics = [m if b else {} for (_, m), b in zip(out, moves, strict=True)]
    return [state for state, _ in out], metrics

  return update
