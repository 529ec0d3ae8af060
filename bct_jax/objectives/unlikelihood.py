"""Trains on answers to learn, and on tokens to make unlikely."""

import dataclasses

import jax
import jax.numpy as jnp

from bct_jax.models.logprobs import token_logprobs
from bct_jax.objectives.base import WithOptions
from bct_jax.types import Batch, Mean, Model, PyTree


@dataclasses.dataclass(frozen=True)
class Unlikelihood(WithOptions):
  """Adds to sft alpha times the unlikelihood of a rejected answer.

    mean over trained tokens of  -log p(y_t) - alpha log(1 - p(z_t))

  with z the rejected completion (Welleck et al. 2019, arXiv 1908.04319,
  equation 4, with the tokens of a whole answer as candidates). The number of
  trained tokens of the answers to learn divides both sums.

  Attributes:
    alpha: the weight of the second term.
    rejected: as for dpo: "plain", "shuffled" or "diverging".
  """

  alpha: float = 1.0
  rejected: str = "diverging"

  def __post_init__(self):
    """Checks the options."""
    self.require("alpha", self.alpha >= 0, "0 (off) or above")
    self.require_in("rejected", ("plain", "shuffled", "diverging"))

  @property
  def extra_rows(self) -> dict[str, str]:
    """Names the rejected completions; see WithOptions."""
    return {"rejected": self.rejected}

  def __call__(
    self, params: PyTree, batch: Batch, rng: jax.Array, model: Model
  ) -> tuple[Mean, dict[str, Mean]]:
    """Returns the loss, and `nll` and `unlikelihood`; see types.Objective."""
    del rng
    logprobs, weights = token_logprobs(model, params, batch)  # [B, R]
    rejected_logprobs, rejected_weights = token_logprobs(
      model, params, batch.extras["rejected"]
    )
    # Bounded: at p = 1 the loss would be infinite, and 1 - p near 0 is rounding
    # of float32.
    complement = jnp.maximum(-jnp.expm1(rejected_logprobs), 1e-7)  # 1 - p
    count = jnp.sum(weights)
    nll = -jnp.sum(weights * logprobs)
    unlikelihood = jnp.sum(rejected_weights * -jnp.log(complement))
    return Mean(nll + self.alpha * unlikelihood, count), {
      "nll": Mean(nll, count),
      "unlikelihood": Mean(unlikelihood, count),
    }
