"""Measures how an update pushes on both behaviors, to first order.

With L the mean loss of a batch, g its gradient, u what the optimizer makes of g
(the params then move by -lr u), and J_b the mean over eval prompts of the
log-probability of behavior b's reference completion, in nats:

  gradient_cosine_b = cos(-g, grad J_b) = -<g, grad J_b> / (|g| |grad J_b|)
  update_cosine_b   = cos(-u, grad J_b)
  update_gain_b     = -lr <u, grad J_b>

Positive means that training makes behavior b more likely: the gain is the
change of J_b that the update would cause if J_b were linear. That the inner
product of two gradients is the first-order effect of training on one loss upon
another is as in TracIn (Pruthi et al. 2020, arXiv 2002.08484, 3). Gradients are
with respect to what is trained, all params or the adapter.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from bct_jax.mesh import path_name, put_batch, row_sharding, to_host
from bct_jax.models.architecture import ModelConfig
from bct_jax.models.decoder import Decoder
from bct_jax.models.logprobs import token_logprobs
from bct_jax.train.params_view import ParamsView
from bct_jax.train.step import Gradient
from bct_jax.types import Batch, PyTree, Rows, TrainState

Measure = Callable[
  [TrainState, PyTree, Batch, float, Mapping[str, Sequence[Rows]]],
  dict[str, Any],
]


def depths(layers: int) -> dict[str, slice]:
  """Splits the layers into thirds, named "layers 0-9", "layers 10-19" ..."""
  out = {}
  for part in np.array_split(np.arange(layers), min(3, layers)):
    first, last = int(part[0]), int(part[-1])
    name = f"layers {first}-{last}" if first < last else f"layer {first}"
    out[name] = slice(first, last + 1)
  return out


def squares(tree: PyTree, model: ModelConfig) -> dict[str, jax.Array]:
  """Computes the squared norm of each group of params.

  Groups that the tree has no params of are left out. Groups are "embed" (also
  the head, where that is tied), thirds of the layers, and "output": the last
  norm and a head of its own. Leaves of layers are stacked, with an entry for
  each layer that has them.
  """
  out: dict[str, jax.Array] = {}

  def add(group: str, x: jax.Array) -> None:
    out[group] = out[group] + x if group in out else x

  for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
    name, square = path_name(path), jnp.square(x)
    if name.startswith("layers/"):
      by_layer = jnp.sum(square, axis=range(1, x.ndim))  # [entries]
      numbers = np.array(model.layers_of(name.removeprefix("layers/")))
      for group, part in depths(model.num_layers).items():
        inside = (numbers >= part.start) & (numbers < part.stop)
        if inside.any():
          add(group, jnp.sum(by_layer[inside]))
    else:
      add("embed" if name == "embed" else "output", jnp.sum(square))
  return out


def make_measure(
  gradient: Gradient,
  model: Decoder,
  tx: optax.GradientTransformation,
  state_sharding: TrainState,
  frozen_sharding: PyTree,
  mesh: Mesh,
  view: ParamsView,
) -> Measure:
  """Makes a Measure, whose programs compile at its first use.

  Beside the state there are at most four trees like the trained params in
  float32: g, u, grad J_b of one behavior as it is summed, and the gradient of a
  batch of references.

  Args:
    gradient: of the mean loss, see train.make_gradient.
    model: that the params are for.
    tx, state_sharding, frozen_sharding, mesh, view: as train.make_train_step
      takes them.

  Returns:
    measure(state, frozen, batch, lr, references) -> what to log, as JSON. The
    state stays as it is. `references` has batches of completions for each
    behavior, whose weights make their sum a mean over completions. Norms are
    those of g and of lr u, in all and for each group of `squares`. A cosine
    with a vector of length zero is None, as is what is not finite.
  """
  config, place = model.config, state_sharding.params
  directions = _make_directions(
    gradient, tx, state_sharding, frozen_sharding, mesh
  )

  @functools.partial(
    jax.jit,
    in_shardings=(place, place, frozen_sharding, row_sharding(mesh)),
    out_shardings=place,
    donate_argnums=0,
  )
  def add_gradient(total: PyTree, params: PyTree, frozen: PyTree, batch: Batch):
    new = jax.grad(_mean_logprob)(params, frozen, batch, model, view)
    return jax.tree.map(lambda t, x: t + x.astype(jnp.float32), total, new)

  zeros = jax.jit(_float32_zeros, out_shardings=place)
  norms = jax.jit(lambda g, u: (squares(g, config), squares(u, config)))

  def measure(state, frozen, batch, lr, references):
    g, u = directions(state, frozen, batch)
    products = {}
    for name, parts in references.items():
      h = zeros(g)
      for part in parts:
        h = add_gradient(h, state.params, frozen, put_batch(part, mesh))
      products[name] = _products(g, u, h)
    lengths, products = to_host((norms(g, u), products), "gradients")
    gg, uu = (_ordered(x, config.num_layers) for x in lengths)
    # JAX sorts the keys of a dict.
    return _record(gg, uu, lr, {name: products[name] for name in references})

  return measure


def _make_directions(
  gradient: Gradient,
  tx: optax.GradientTransformation,
  state_sharding: TrainState,
  frozen_sharding: PyTree,
  mesh: Mesh,
) -> Callable[[TrainState, PyTree, Batch], tuple[PyTree, PyTree]]:
  """Makes the program of g and u at a state; see `make_measure`."""
  place = state_sharding.params

  @functools.partial(
    jax.jit,
    in_shardings=(state_sharding, frozen_sharding, row_sharding(mesh)),
    out_shardings=(place, place),
  )
  def directions(state: TrainState, frozen: PyTree, batch: Batch):
    rng = jax.random.fold_in(state.rng, state.step)
    g, *_ = gradient(state.params, frozen, batch, rng)
    u, _ = tx.update(g, state.opt_state, state.params)
    return g, u

  return directions


def _mean_logprob(
  params: PyTree, frozen: PyTree, batch: Batch, model: Decoder, view: ParamsView
) -> jax.Array:
  """Computes the part of J_b that a batch of references adds."""
  whole = view.model_params(params, frozen)
  logprobs, weights = token_logprobs(model, whole, batch)
  return jnp.sum(logprobs * weights)


def _float32_zeros(tree: PyTree) -> PyTree:
  """Makes zeros of the shapes of a tree."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)


@jax.jit
def _products(g: PyTree, u: PyTree, h: PyTree) -> tuple[jax.Array, ...]:
  """Computes <g, h>, <u, h> and <h, h>."""
  return _dot(g, h), _dot(u, h), _dot(h, h)


def _dot(a: PyTree, b: PyTree) -> jax.Array:
  """Computes the inner product of two trees."""
  by_leaf = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
  return jax.tree.reduce(jnp.add, by_leaf)


def _ordered(by_group: dict[str, Any], layers: int) -> dict[str, float]:
  """Orders values of groups from the input to the output."""
  order = ("embed", *depths(layers), "output")
  return {k: float(by_group[k]) for k in order if k in by_group}


def _record(
  g: dict[str, float],
  u: dict[str, float],
  lr: float,
  products: dict[str, tuple[Any, Any, Any]],
) -> dict[str, Any]:
  """Makes what a Measure returns.

  Args:
    g, u: squared norms of each group of params.
    lr: the learning rate of the update.
    products: of each behavior, see `_products`.
  """
  out: dict[str, Any] = {}
  gg, uu = sum(g.values()), sum(u.values())
  for name, (gh, uh, hh) in products.items():
    hh = float(hh)
    out[f"gradient_cosine_{name}"] = _cosine(-float(gh), gg, hh)
    out[f"update_cosine_{name}"] = _cosine(-float(uh), uu, hh)
    out[f"update_gain_{name}"] = _finite(-lr * float(uh))
  for name, groups, scale in (("gradient", g, 1.0), ("update", u, lr)):
    with_all = {"all": sum(groups.values()), **groups}
    out[f"{name}_norm"] = {
      k: _finite(scale * math.sqrt(x)) for k, x in with_all.items()
    }
  return out


def _cosine(product: float, a: float, b: float) -> float | None:
  """Computes a cosine from an inner product and two squared norms."""
  return _finite(product / math.sqrt(a * b)) if a * b > 0 else None


def _finite(x: float) -> float | None:
  """Returns a number, or None if it is not finite, which JSON cannot hold."""
  return x if math.isfinite(x) else None
