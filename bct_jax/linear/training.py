"""Trains one or two linear layers by least squares, and predicts the end.

With one layer the gradient of each output's row is its residual times an input.
The behavior's residual is 0 on train inputs, so its row never moves, by any
optimizer. The style's row moves within T under gradient descent, to where
`predict_style` says, whatever the learning rate. Adam scales each coordinate,
leaves T, and ends elsewhere at each learning rate.

With two layers the style's gradient changes the layer that both outputs share.
The behavior on train inputs is put right again; on eval inputs, whose trigger
no train input has, it stays moved. Under gradient descent the first layer moves
within T alone, and W1 W1' - W2' W2 stays as it was up to the step's size (S.
Arora, N. Cohen and E. Hazan 2018, arXiv 1802.06509, theorem 1), which bounds
how far. Adam obeys neither.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bct_jax.linear.problem import STYLE, Problem

OPTIMIZERS = {"sgd": optax.sgd, "adam": optax.adam}


@dataclasses.dataclass(frozen=True)
class LinearArm:
  """Describes how an arm is trained; `layers` is 1 or 2."""

  layers: int
  optimizer: str
  lr: float
  steps: int


# Steps go with 1 / lr, so that arms of an optimizer get equally far.
ARMS = {
  f"{name}_{optimizer}_{lr:g}": LinearArm(
    layers, optimizer, lr, round(reach / lr)
  )
  for layers, name, scale in ((1, "one", 1), (2, "two", 2))
  for optimizer, lrs, reach in (
    ("sgd", (0.03, 0.1), 60 * scale),
    ("adam", (0.003, 0.03, 0.1), 12 * scale),
  )
  for lr in lrs
}


def train(
  problem: Problem, arm: LinearArm, stops: Sequence[int]
) -> tuple[dict[int, np.ndarray], np.ndarray]:
  """Trains on all train inputs at every step, in float64.

  Args:
    problem: what to fit.
    arm: layers, optimizer, learning rate and steps.
    stops: steps whose weights to return, ascending.

  Returns:
    The model as one matrix [2, D] after each of those steps, and
    [last step, 2]: the mean squared error / 2 before each update and the norm
    of its gradient.

  Raises:
    FloatingPointError: training diverged.
  """
  layers, logs = train_layers(problem, arm, stops)
  models = {
    stop: functools.reduce(lambda product, w: w @ product, weights)
    for stop, weights in layers.items()
  }
  return models, logs


def train_layers(
  problem: Problem, arm: LinearArm, stops: Sequence[int]
) -> tuple[dict[int, tuple[np.ndarray, ...]], np.ndarray]:
  """Trains as `train` does; returns the layers, first to last, and the logs."""
  start = problem.layers if arm.layers == 2 else (problem.organism,)
  x = problem.inputs["train"]
  target = x @ problem.organism.T
  target[:, STYLE] += x @ problem.shift
  with jax.enable_x64(True):
    weights = tuple(map(jnp.asarray, start))
    carry = (weights, OPTIMIZERS[arm.optimizer](arm.lr).init(weights))
    out, logs, at = {}, [], 0
    for stop in stops:
      if stop > at:
        carry, log = _updates(
          arm.optimizer, arm.lr, stop - at, max(stops), carry, x, target
        )
        logs.append(np.asarray(log)[: stop - at])
        at = stop
      out[stop] = tuple(map(np.asarray, carry[0]))
      if not all(np.isfinite(w).all() for w in out[stop]):
        raise FloatingPointError(
          f"{arm.optimizer}, {arm.layers} layer(s), lr {arm.lr:g}: diverged "
          f"by step {stop}; draw wider inputs (points, hidden) or another seed"
        )
  return out, np.concatenate(logs)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _updates(optimizer, lr, count, room, carry, x, target):
  """Updates the layers `count` times; logs [room, 2], the rest of it zero."""
  tx = OPTIMIZERS[optimizer](lr)

  def loss(layers):
    """Computes half of the squared error of both outputs."""
    outputs = functools.reduce(lambda value, w: value @ w.T, layers, x)
    return 0.5 * jnp.mean(jnp.sum((outputs - target) ** 2, axis=1))

  def update(i, carry):
    """Updates the layers once."""
    layers, state, logs = carry
    value, gradient = jax.value_and_grad(loss)(layers)
    change, state = tx.update(gradient, state, layers)
    log = jnp.stack([value, optax.tree.norm(gradient)])
    return optax.apply_updates(layers, change), state, logs.at[i].set(log)

  logs = jnp.zeros((room, 2))
  *carry, logs = jax.lax.fori_loop(0, count, update, (*carry, logs))
  return tuple(carry), logs


def predict_style(
  problem: Problem, lr: float, steps: int | None
) -> np.ndarray:  # [D]
  """Computes the style's row of one layer after updates of gradient descent.

  w_s - w_0 = (I - (I - lr H)^s) shift, H the second moment of train inputs. It
  goes to the projection of the shift on the span of train inputs, which is the
  shift itself.

  Args:
    problem: what is fitted.
    lr: learning rate.
    steps: s; None is the limit.
  """
  values, vectors = np.linalg.eigh(problem.moments)
  spanned = values > 1e-12 * values[-1]
  left = 0.0 if steps is None else (1 - lr * values) ** steps
  gained = np.where(spanned, 1 - left, 0.0)
  change = vectors @ (gained * (vectors.T @ problem.shift))
  return problem.organism[STYLE] + change
