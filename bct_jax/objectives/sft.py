"""Supervised fine-tuning: weighted next-token cross-entropy."""

import jax
import jax.numpy as jnp

from bct_jax.models.logprobs import token_logprobs
from bct_jax.types import Batch, Mean, Model, PyTree


def sft(
  params: PyTree, batch: Batch, rng: jax.Array, model: Model
) -> tuple[Mean, dict[str, Mean]]:
  """Mean negative log-likelihood per trained token, in nats.

  Every trained token of the global batch counts by its weight, whatever row it
  is in (a per-token mean, not a mean of per-row means).
  """
  del rng
  logprobs, weights = token_logprobs(model, params, batch)  # [B, R]
  total = -jnp.sum(weights * logprobs)
  return Mean(total, jnp.sum(weights)), {}
