"""Unlikelihood: answers to learn, and tokens to make unlikely."""

import dataclasses

import jax
import jax.numpy as jnp

from bct_jax.models.logprobs import token_logprobs
from bct_jax.objectives.base import WithOptions
from bct_jax.types import Batch, Mean, Model, PyTree


@dataclasses.dataclass(frozen=True)
class Unlikelihood(WithOptions):
  """sft, plus alpha times the unlikelihood of a rejected answer.

    mean over trained tokens of  -log p(y_t) - alpha log(1 - p(z_t))

  with z the rejected completion (Welleck et al. 2019, arXiv 1908.04319,
  equation 4, with the tokens of a whole answer as candidates). Both sums are
  divided by the number of trained tokens of the answers to learn.

  Attributes:
    alpha: the weight of the second term.
    rejected: as for dpo: "plain", "shuffled" or "diverging".
  """

  alpha: float = 1.0
  rejected: str = "diverging"

  def __post_init__(self):
    self.require("alpha", self.alpha >= 0, "0 (off) or above")
    self.require_in("rejected", ("plain", "shuffled", "diverging"))

  @property
  def extra_rows(self) -> dict[str, str]:
    return {"rejected": self.rejected}

  def __call__(
    self, params: PyTree, batch: Batch, rng: jax.Array, model: Model
  ) -> tuple[Mean, dict[str, Mean]]:
    del rng
    liked, weights = token_logprobs(model, params, batch)  # [B, R]
    other, against = token_logprobs(model, params, batch.extras["rejected"])
    # 1 - p is at least what float32 can tell from 0.
    unlike = -jnp.log(jnp.maximum(-jnp.expm1(other), 1e-7))
    count = jnp.sum(weights)
    nll, against = -jnp.sum(weights * liked), jnp.sum(against * unlike)
    return Mean(nll + self.alpha * against, count), {
      "nll": Mean(nll, count),
      "unlikelihood": Mean(against, count),
    }
