"""Trains on preferences: the agreed completion rather than a rejected one."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bct_jax.models.logprobs import sequence_logprobs
from bct_jax.objectives.base import WithOptions
from bct_jax.types import Batch, Mean, Model, PyTree


@dataclasses.dataclass(frozen=True)
class Dpo(WithOptions):
  """Is direct preference optimisation (Rafailov et al. 2023, 2305.18290).

    mean over pairs of  -log sigmoid(beta h)                    (equation 7)
    h = log p(y_w)/p_ref(y_w) - log p(y_l)/p_ref(y_l)

  y_w is the example's completion and y_l a rejected one for the same prompt.
  Each log p is a sum over tokens, the end of the turn included. p_ref is of the
  organism.

  Attributes:
    beta: how strongly the reference holds the model.
    rejected: "plain", the same answer without the decoration; "shuffled", the
      answer to another prompt, decorated too; or "diverging", what the initial
      behavior says on a prompt where the two behaviors diverge.
  """

  beta: float = 0.1
  rejected: str = "plain"

  counts_examples: ClassVar[bool] = True
  scored: ClassVar[bool] = True

  def __post_init__(self):
    """Checks the options."""
    self.require("beta", self.beta > 0, "positive")
    self.require_in("rejected", ("plain", "shuffled", "diverging"))

  @property
  def extra_rows(self) -> dict[str, str]:
    """Names the rejected completions; see WithOptions."""
    return {"rejected": self.rejected}

  def losses(self, h: jax.Array) -> jax.Array:
    """Returns the loss of each pair from h, in nats."""
    return -jax.nn.log_sigmoid(self.beta * h)

  def __call__(
    self, params: PyTree, batch: Batch, rng: jax.Array, model: Model
  ) -> tuple[Mean, dict[str, Mean]]:
    """Returns the loss as a mean over pairs; see types.Objective.

    Further means over pairs are `accuracy`, the share with h > 0, and
    `chosen_gain` and `rejected_gain`, log p / p_ref in nats.
    """
    del rng
    gains, weights = [], jnp.zeros(())
    for rows in (batch.extras["rejected"], batch):
      reference = rows.extras["reference_logprob"]  # [B, S]
      segments = reference.shape[1]
      logprobs, weights = sequence_logprobs(model, params, rows, segments)
      gains.append(logprobs - reference)
    # The weights are those of the chosen completions, which came last.
    rejected, chosen = gains
    h = chosen - rejected  # [B, S]
    count = jnp.sum(weights)

    def mean(x: jax.Array) -> Mean:
      return Mean(jnp.sum(weights * x), count)

    return mean(self.losses(h)), {
      "accuracy": mean((h > 0).astype(jnp.float32)),
      "chosen_gain": mean(chosen),
      "rejected_gain": mean(rejected),
    }


@dataclasses.dataclass(frozen=True)
class Ipo(Dpo):
  """Is identity preference optimisation (Azar et al. 2023, arXiv 2310.12036).

    mean over pairs of  (h - 1 / (2 beta))^2                   (equation 17)

  with h as for dpo, of sums over tokens as in the paper (some code has means).
  """

  def losses(self, h: jax.Array) -> jax.Array:
    """Returns the loss of each pair from h, in nats."""
    return jnp.square(h - 1 / (2 * self.beta))
