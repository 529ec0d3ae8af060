"""Fine-tunes on examples, by weighted next-token cross-entropy."""

import jax
import jax.numpy as jnp

from bct_jax.models.logprobs import token_logprobs
from bct_jax.types import Batch, Mean, Model, PyTree


def sft(
  params: PyTree, batch: Batch, rng: jax.Array, model: Model
) -> tuple[Mean, dict[str, Mean]]:
  """Returns the mean negative log-likelihood per trained token, in nats.

  Every trained token of the global batch counts by its weight, whatever row it
  is in: it is a mean over tokens, not a mean of the means of rows.
  """
  del rng
  logprobs, weights = token_logprobs(model, params, batch)  # [B, R]
  total = -jnp.sum(weights * logprobs)
  return Mean(total, jnp.sum(weights)), {}
