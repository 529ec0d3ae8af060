"""Makes the train step, a pure function under jit; loop.py calls it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax.mesh import row_sharding
from bct_jax.train.params_view import ParamsView
from bct_jax.types import Batch, Mean, Model, Objective, PyTree, TrainState

Gradient = Callable[
  [PyTree, PyTree, Batch, jax.Array], tuple[PyTree, Mean, dict[str, Mean]]
]
Step = Callable[
  [TrainState, PyTree, Batch, jax.Array], tuple[TrainState, dict[str, Any]]
]


_ALL_PARAMS = ParamsView()


class NumericalError(RuntimeError):
  """Is raised when the loss or the gradient is not finite.

  Nothing was saved after it.
  """


def make_gradient(
  objective: Objective, model: Model, accum: int, view: ParamsView
) -> Gradient:
  """Makes the gradient of the mean loss, for use inside jit.

  Args:
    objective, model, accum, view: as make_train_step takes them.

  Returns:
    gradient(params, frozen, batch, rng) -> the gradient in float32, the loss
    and the objective's metrics; the latter two are not divided yet.
  """

  def total_loss(params, frozen, micro, key):
    more = {}
    if view.reference:
      more["reference"] = view.reference_params(frozen)
    whole = view.model_params(params, frozen)
    loss, metrics = _checked(objective(whole, micro, key, model, **more))
    return loss.total, (loss, metrics)

  def sums(params, frozen, micro, key):
    grads, aux = jax.grad(total_loss, has_aux=True)(params, frozen, micro, key)
    # Sums over microbatches lose too much in bfloat16.
    grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
    return (grads, *aux)

  def gradient(params, frozen, batch, rng):
    if accum == 1:
      grads, loss, metrics = sums(params, frozen, batch, rng)
    else:
      micros = _split_rows(batch, accum)

      def add(carry, xs):
        micro, i = xs
        new = sums(params, frozen, micro, jax.random.fold_in(rng, i))
        return jax.tree.map(jnp.add, carry, new), None

      first_micro = jax.tree.map(lambda x: x[0], micros)
      shapes = jax.eval_shape(sums, params, frozen, first_micro, rng)
      zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
      (grads, loss, metrics), _ = jax.lax.scan(
        add, zeros, (micros, jnp.arange(accum))
      )
    # The only division, after all microbatches and all devices: a mean of
    # their means would weigh a token by how many its microbatch has.
    scale = jnp.where(loss.weight > 0, 1 / _nonzero(loss.weight), 0)
    grads = jax.tree.map(lambda g: g * scale, grads)
    return grads, loss, metrics

  return gradient


def make_train_step(
  objective: Objective,
  model: Model,
  tx: optax.GradientTransformation,
  state_sharding: PyTree,
  frozen_sharding: PyTree,
  mesh: Mesh,
  accum: int = 1,
  view: ParamsView = _ALL_PARAMS,
) -> Step:
  """Makes the program of one update, which compiles at its first use.

  Args:
    objective: gives the loss of a microbatch as a sum and a weight.
    model: passed on to the objective.
    tx: turns the mean gradient into a direction (see optim.make_optimizer).
    state_sharding, frozen_sharding: NamedShardings of the state and of the
      frozen params. The latter are an argument of the step because closing over
      arrays bakes them into the program.
    mesh: spreads the rows of the batch.
    accum: microbatches per update; the result does not depend on it.
    view: says which params are trained, frozen, and compared with.

  Returns:
    step(state, frozen, batch, lr) -> (state, metrics). The state is donated.
    Metrics are scalars: loss, grad_norm (before clipping), weight (sum of loss
    weights), and those that the objective adds.
  """
  gradient = make_gradient(objective, model, accum, view)

  def step(state: TrainState, frozen: PyTree, batch: Batch, lr: jax.Array):
    rng = jax.random.fold_in(state.rng, state.step)
    grads, loss, metrics = gradient(state.params, frozen, batch, rng)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = jax.tree.map(
      lambda p, u: (p.astype(jnp.float32) - lr * u).astype(p.dtype),
      state.params,
      updates,
    )
    logged = {
      "loss": loss.value(),
      "grad_norm": optax.tree.norm(grads),
      "weight": loss.weight,
      **{name: mean.value() for name, mean in metrics.items()},
    }
    updates_done = state.step + 1
    average = view.update_average(state.ema, params, updates_done)
    new = TrainState(updates_done, params, opt_state, state.rng, average)
    return new, logged

  replicated, rows = NamedSharding(mesh, P()), row_sharding(mesh)
  return jax.jit(
    step,
    in_shardings=(state_sharding, frozen_sharding, rows, replicated),
    out_shardings=(state_sharding, replicated),
    donate_argnums=0,
  )


def eval_params(state: TrainState) -> PyTree:
  """Returns the params to evaluate and to keep: their average, if there is
  one."""
  if state.ema is None:
    return state.params
  return cast_like(state.params, state.ema)


@jax.jit
def cast_like(params: PyTree, average: PyTree) -> PyTree:
  """Casts the average of the params to the dtypes of the params."""
  return jax.tree.map(lambda p, a: a.astype(p.dtype), params, average)


def _nonzero(x: jax.Array) -> jax.Array:
  """Replaces 0, and less, by 1: a divisor where the result is not used."""
  return jnp.where(x > 0, x, 1)


def _split_rows(batch: Batch, accum: int) -> Batch:
  """Splits [B, ...] into microbatches, [accum, B / accum, ...].

  Row b goes to microbatch b % accum, so that each device keeps its own rows;
  consecutive blocks would move rows between devices.
  """
  return jax.tree.map(
    lambda x: x.reshape(-1, accum, *x.shape[1:]).swapaxes(0, 1), batch
  )


def _checked(result: Any) -> tuple[Mean, dict[str, Mean]]:
  """Returns what the objective returned; raises TypeError if it is no loss."""
  if (
    isinstance(result, tuple)
    and len(result) == 2
    and isinstance(result[0], Mean)
    and isinstance(result[1], dict)
    and all(isinstance(m, Mean) for m in result[1].values())
  ):
    return result
  raise TypeError(
    "an objective must return (Mean(total, weight), {name: Mean}): the sum of "
    "the loss and the weight to divide it by, so that the step can divide once "
    f"after all microbatches; got {type(result).__name__}"
  )
