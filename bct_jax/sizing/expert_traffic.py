"""Computes what devices receive for the experts of a mixture in an update."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bct_jax.mesh import path_name
from bct_jax.models.decoder import Decoder
from bct_jax.models.expert_exchange import Layout
from bct_jax.sizing.sizes import EXPERTS, Axes, Work
from bct_jax.types import PyTree


class ExpertTraffic(NamedTuple):
  """Holds bytes that a device receives, by what is moved.

  Attributes:
    weights: of experts, gathered over fsdp.
    tokens: sent over fsdp, in one round of each layer; None if experts do not
      divide over the devices.
  """

  weights: float
  tokens: float | None


def expert_traffic(
  model: Decoder, params: PyTree, axes: Axes, work: Work, trained: bool
) -> ExpertTraffic:
  """Computes what an update of a mixture receives over fsdp.

    weights: accum x (2 + trained) x P / tensor x (fsdp - 1) / fsdp
    tokens:  accum x layers x 5 x (fsdp - 1) x C x D x bytes

  P are the bytes of all experts' kernels in the dtype of the products. They are
  gathered forward and backward, and their gradients are brought to their
  shards, which as an all-reduce receives twice. C rows go to each other device
  in a round, see Layout.capacity: out and back forward; out, their gradients
  out, and gradients back backward. Adapters and sums over other axes are left
  out.

  Args:
    model: a mixture.
    params: of the model, as in Decoder.init.
    axes: of the mesh.
    work: an update.
    trained: whether experts' kernels are.
  """
  c, fsdp, tensor = model.config, axes["fsdp"], axes["tensor"]
  width = jnp.dtype(model.dtype).itemsize

  def size(path: Any, x: Any) -> int:
    return math.prod(x.shape) if EXPERTS.match(path_name(path)) else 0

  leaves = jax.tree_util.tree_flatten_with_path(params)[0]
  kernels = sum(size(path, x) for path, x in leaves) * width / tensor
  weights = work.accum * (2 + trained) * kernels * (fsdp - 1) / fsdp
  try:
    layout = Layout.make(c.num_experts, c.mlp_width, fsdp, tensor)
  except ValueError:
    return ExpertTraffic(weights, None)
  rows = -(-work.rows // (axes["data"] * fsdp * work.accum))
  capacity = layout.capacity(rows * work.length, c.experts_per_token)
  sent = 5 * (fsdp - 1) * capacity * c.width * width
  return ExpertTraffic(weights, work.accum * c.num_layers * sent)
