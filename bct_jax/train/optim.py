"""Makes optimizers, learning-rate schedules and the average of the weights.

The optimizer gives a direction; the train step multiplies it by the learning
rate, which is an argument of the step. One compiled step therefore serves every
learning rate and schedule of a sweep.
"""

import math
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax.config import OptimConfig, suggest
from bct_jax.mesh import path_name
from bct_jax.types import PyTree

# Biases, norms and embeddings are not decayed, as is usual for AdamW, nor what
# makes the decays of linear attention (Gu and Dao 2023, arXiv 2312.00752), nor
# the factors of adapters: a decay of both is none of their product.
_NO_DECAY = (
  *("scale", "bias", "embed", "lora_a", "lora_b", "a_log", "dt_bias"),
  "scalar",  # of a block's output, which is no trained parameter
)


def _map_names(f: Callable[[str, Any], Any], tree: PyTree) -> PyTree:
  """Applies f(name, leaf) to the leaves of a tree."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: f(path_name(path), x), tree
  )


def decay_mask(params: PyTree) -> PyTree:
  """Marks the params that weight decay applies to."""
  return _map_names(
    lambda name, _: name.split("/")[-1] not in _NO_DECAY, params
  )


def lr_factors(config: OptimConfig, params: PyTree) -> PyTree:
  """Returns the factor of each parameter's learning rate.

  Raises:
    ValueError: a parameter matches several patterns of `lr_groups`, or a
      pattern matches no parameter.
  """
  names = []

  def factor_of(name: str, _: Any) -> float:
    names.append(name)
    hits = [(r, x) for r, x in config.lr_groups if re.search(r, name)]
    if len(hits) > 1:
      raise ValueError(
        f"optim.lr_groups: {len(hits)} patterns match {name}, at most one may: "
        f"{[r for r, _ in hits]}"
      )
    return hits[0][1] if hits else 1.0

  out = _map_names(factor_of, params)
  for pattern, _ in config.lr_groups:
    if not any(re.search(pattern, name) for name in names):
      raise ValueError(
        f"optim.lr_groups: {pattern!r} matches no trained parameter"
        f"{suggest(pattern, names)}; there are {names}"
      )
  return out


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
  """Makes what turns the mean gradient into a step of size one.

  The parameters move by -lr times its output: the optimizer's direction plus
  weight_decay times the parameter (Loshchilov and Hutter 2019, arXiv
  1711.05101), times the factor of the parameter's group. The state is float32
  for params of any dtype: bfloat16 cannot hold a second moment that moves by a
  thousandth at a time.
  """
  tx = optax.chain(
    optax.clip_by_global_norm(config.clip_norm)
    if config.clip_norm > 0
    else optax.identity(),
    _direction(config),
    optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
  )

  def wide(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: p.astype(jnp.float32), params)

  def init(params: PyTree) -> PyTree:
    lr_factors(config, params)
    return tx.init(wide(params))

  def update(updates: PyTree, state: PyTree, params: PyTree = None):
    updates, state = tx.update(updates, state, wide(params))
    factors = lr_factors(config, params)
    return jax.tree.map(lambda u, x: u * x, updates, factors), state

  return optax.GradientTransformation(init, update)


def _direction(config: OptimConfig) -> optax.GradientTransformation:
  """Makes the optimizer itself, without clipping, decay and learning rate.

  * adamw: Loshchilov and Hutter 2019, arXiv 1711.05101.
  * lion: the sign of a momentum (Chen et al. 2023, arXiv 2302.06675).
  * sgd: with heavy-ball momentum b1, as in torch.
  * adafactor: Shazeer and Stern 2018, arXiv 1804.04235: second moments as
    rows and columns where a matrix has 128 of each, updates clipped to a root
    mean square of 1, and relative to that of the parameter (1e-3 at least).
  * muon: the momentum's nearest orthogonal matrix, for matrices of layers; Adam
    for the rest. Scaled by 0.2 sqrt(max(in, out)), so that both may share
    AdamW's learning rate (Liu et al. 2025, arXiv 2502.16982, section 2.2).
  """
  adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
  if config.optimizer == "adamw":
    return adam
  if config.optimizer == "lion":
    return optax.scale_by_lion(b1=config.b1, b2=config.b2)
  if config.optimizer == "sgd":
    return optax.trace(decay=config.b1)
  if config.optimizer == "adafactor":
    factored = optax.chain(
      optax.scale_by_factored_rms(),
      optax.clip_by_block_rms(1.0),
      optax.scale_by_param_block_rms(),
    )
    return _layer_by_layer(factored, factored)
  if config.optimizer == "muon":
    muon = optax.chain(
      optax.contrib.scale_by_muon(
        beta=config.b1,
        weight_dimension_numbers=lambda tree: jax.tree.map(
          lambda _: optax.contrib.MuonDimensionNumbers(0, 1), tree
        ),
      ),
      optax.stateless(
        lambda updates, _: jax.tree.map(
          lambda u: 0.2 * math.sqrt(max(u.shape)) * u, updates
        )
      ),
    )
    return _layer_by_layer(
      optax.partition(
        {"matrix": muon, "vector": adam},
        lambda tree: jax.tree.map(
          lambda x: "matrix" if x.ndim == 2 else "vector", tree
        ),
      ),
      adam,
    )
  raise ValueError(f"optim.optimizer = {config.optimizer!r}: unknown")


def _layer_by_layer(
  layers: optax.GradientTransformation, rest: optax.GradientTransformation
) -> optax.GradientTransformation:
  """Applies an optimizer to each layer, and each expert, as if it were alone.

  The params of all layers are stacked, so that a norm or a factor over a whole
  leaf would mix layers.

  Args:
    layers: for a matrix of a layer or of an expert.
    rest: for params outside the layers.
  """

  def each(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    # vmap refuses a group without arrays.
    def init(params: PyTree) -> PyTree:
      has_arrays = jax.tree.leaves(params)
      return (jax.vmap(tx.init) if has_arrays else tx.init)(params)

    def update(updates: PyTree, state: PyTree, params: PyTree = None):
      has_arrays = jax.tree.leaves(params)
      run = jax.vmap(tx.update) if has_arrays else tx.update
      return run(updates, state, params)

    return optax.GradientTransformation(init, update)

  def stacked(name: str, x: Any) -> str:
    if not name.startswith("layers/"):
      return "rest"
    expert = x.ndim == 4 and not name.endswith("conv")  # [L, E, in, out]
    return "expert" if expert else "layer"

  return optax.partition(
    {"rest": rest, "layer": each(layers), "expert": each(each(layers))},
    lambda tree: _map_names(stacked, tree),
  )


def update_average(
  decay: float, average: PyTree, params: PyTree, step: jax.Array
) -> PyTree:
  """Takes the params after update t into their moving average.

    a_t = (1 - w_t) a_(t-1) + w_t p_t,  w_t = (1 - d) / (1 - d^t)

  This is the average that begins at zero, the sum of (1 - d) d^(t-i) p_i over
  the updates i = 1 ... t, divided by the sum of its weights, 1 - d^t: the bias
  correction of Adam's moments (Kingma and Ba 2015, arXiv 1412.6980, 3). So the
  params that a run starts from have no part in the average. Of an adapter the
  factors are averaged, not their product.

  Args:
    decay: d, above 0.
    average: float32, the one after update t - 1.
    params: those after update t, of any dtype.
    step: [] int32, t, counted from 1.
  """
  log = math.log(decay)
  w = jnp.expm1(jnp.float32(log)) / jnp.expm1(log * step.astype(jnp.float32))
  return jax.tree.map(
    lambda a, p: (1 - w) * a + w * p.astype(jnp.float32), average, params
  )


def state_note(config: OptimConfig) -> str:
  """Says in words what the optimizer keeps for each weight."""
  return {
    "adafactor": "second moments, as rows and columns of large matrices",
    "adamw": "two moments for each weight",
    "lion": "one moment for each weight",
    "muon": "one moment for each weight, two outside the layers' matrices",
    "sgd": "one moment for each weight",
  }[config.optimizer]


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
  """Returns the learning rate of update `step`, counted from 0, of `steps`.

  Warm-up is linear and reaches the full rate at update `warmup_steps`; linear
  and cosine then fall to zero just after the last update. wsd stays at the full
  rate but for the last `decay_steps` updates, over which it falls linearly to
  zero, as steeply as a warm-up of that many rises (Hu et al. 2024, arXiv
  2404.06395; Haegele et al. 2024, arXiv 2405.18392, for the linear form).
  """
  if step < config.warmup_steps:
    return config.lr * (step + 1) / (config.warmup_steps + 1)
  done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
  shape = {
    "constant": 1.0,
    "linear": 1 - done,
    "cosine": 0.5 * (1 + math.cos(math.pi * done)),
    "wsd": min(1.0, (steps - step) / (config.decay_steps + 1)),
  }
  return config.lr * shape[config.schedule]


def optimizer_shardings(
  tx: optax.GradientTransformation,
  abstract_params: PyTree,
  shardings: PyTree,
  replicated: NamedSharding,
) -> PyTree:
  """Finds shardings of the optimizer state that follow the parameters'.

  JAX itself works them out: on a mesh of explicit axes shardings are part of
  the types, so an array of the state comes with the sharding of the dimensions
  that it shares with its parameter, be they all, the rows or the columns.
  """
  mesh = replicated.mesh
  typed = AbstractMesh(
    mesh.axis_sizes,
    mesh.axis_names,
    axis_types=(AxisType.Explicit,) * len(mesh.axis_names),
  )
  params = jax.tree.map(
    lambda p, s: jax.ShapeDtypeStruct(
      p.shape, p.dtype, sharding=NamedSharding(typed, s.spec)
    ),
    abstract_params,
    shardings,
  )
  with jax.sharding.use_abstract_mesh(typed):
    state = jax.eval_shape(tx.init, params)

  def place(leaf: Any) -> NamedSharding:
    if leaf.sharding is None:  # made of constants alone
      return replicated
    spec = list(leaf.sharding.spec)
    while spec and spec[-1] is None:
      spec.pop()
    return NamedSharding(mesh, P(*spec))

  return jax.tree.map(place, state)
