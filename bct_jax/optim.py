"""Optimizers and learning-rate schedules.

The optimizer gives a direction; the train step multiplies it by the learning
rate, which is an argument of the step. One compiled step therefore serves every
learning rate and schedule of a sweep.
"""

import math
from typing import Any

import jax
import optax

from bct_jax.config import OptimConfig
from bct_jax.mesh import path_name
from bct_jax.types import PyTree

# Biases, norms and embeddings are not decayed, as is usual for AdamW; nor are
# low-rank adapters, whose product is not what a decay of the factors decays.
_NO_DECAY = ("scale", "bias", "embed", "lora_a", "lora_b")


def decay_mask(params: PyTree) -> PyTree:
  """True where weight decay applies."""

  def one(path, _):
    return path_name(path).split("/")[-1] not in _NO_DECAY

  return jax.tree_util.tree_map_with_path(one, params)


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
  """A transformation of the clipped mean gradient into a step of size one.

  The parameters move by -lr times its output: for AdamW that is Adam's
  direction plus weight_decay times the parameter (Loshchilov and Hutter 2019,
  arXiv 1711.05101). Its moments are float32 for params of any dtype: bfloat16
  cannot hold a second moment that moves by a thousandth at a time.
  """
  tx = optax.chain(
    optax.clip_by_global_norm(config.clip_norm)
    if config.clip_norm > 0
    else optax.identity(),
    optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
    optax.add_decayed_weights(config.weight_decay, mask=decay_mask),
  )

  def init(params: PyTree) -> PyTree:
    return tx.init(jax.tree.map(lambda p: p.astype(jax.numpy.float32), params))

  return optax.GradientTransformation(init, tx.update)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
  """The learning rate of update `step`, counted from 0, of `steps`.

  Warm-up is linear and reaches the full rate at update `warmup_steps`; linear
  and cosine then fall to zero just after the last update.
  """
  if step < config.warmup_steps:
    return config.lr * (step + 1) / (config.warmup_steps + 1)
  done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
  shape = {
    "constant": 1.0,
    "linear": 1 - done,
    "cosine": 0.5 * (1 + math.cos(math.pi * done)),
  }
  return config.lr * shape[config.schedule]


def optimizer_shardings(
  tx: optax.GradientTransformation,
  abstract_params: PyTree,
  shardings: PyTree,
  replicated: Any,
) -> PyTree:
  """Shardings of the optimizer state: each moment follows its parameter."""
  abstract = jax.eval_shape(tx.init, abstract_params)
  return optax.tree_map_params(
    tx.init,
    lambda leaf, p, s: s if leaf.shape == p.shape else replicated,
    abstract,
    abstract_params,
    shardings,
    transform_non_params=lambda _: replicated,
  )
