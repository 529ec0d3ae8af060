"""Supervised fine-tuning that is held near the organism it starts from."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bct_jax.models.logprobs import reference_kl, token_logprobs
from bct_jax.objectives.base import WithOptions
from bct_jax.types import Batch, Mean, Model, PyTree


@dataclasses.dataclass(frozen=True)
class KlToRef(WithOptions):
  """sft plus beta times the divergence from the organism.

    mean over trained tokens of  -log p(y_t) + beta KL_t

  KL_t compares the two next-token distributions at a trained position, over the
  whole vocabulary. On other prompts, those of an example count together as much
  as the example does.

  Attributes:
    beta: the weight of the divergence.
    direction: forward is KL(organism || model), which asks the model to cover
      all that the organism would say; reverse is KL(model || organism).
    prompts: where the divergence is taken: "train" on the examples themselves,
      "install" on those that the initial behavior is installed with, or the
      path of a file of JSON lines, {"messages": [...]} with the completion as
      an assistant message at the end. They repeat as often as needed.
  """

  beta: float = 0.1
  direction: str = "forward"
  prompts: str = "train"

  uses_reference: ClassVar[bool] = True

  def __post_init__(self):
    self.require("beta", self.beta >= 0, "0 (off) or above")
    self.require_in("direction", ("forward", "reverse"))
    named = self.prompts in ("train", "install")
    good = named or self.prompts.endswith(".jsonl")
    self.require("prompts", good, "'train', 'install' or a path of a .jsonl")

  @property
  def extra_rows(self) -> dict[str, str]:
    return {} if self.prompts == "train" else {"anchor": self.prompts}

  def __call__(
    self,
    params: PyTree,
    batch: Batch,
    rng: jax.Array,
    model: Model,
    *,
    reference: PyTree,
  ) -> tuple[Mean, dict[str, Mean]]:
    del rng
    forward = self.direction == "forward"
    where = batch if self.prompts == "train" else batch.extras["anchor"]
    kl, logprobs, anchored = reference_kl(
      model, params, reference, where, where, forward
    )
    weights = anchored  # [B, R]
    if self.prompts != "train":
      logprobs, weights = token_logprobs(model, params, batch)
    count = jnp.sum(weights)
    nll = -jnp.sum(weights * logprobs)
    kl = jnp.sum(anchored * kl)
    return Mean(nll + self.beta * kl, count), {
      "nll": Mean(nll, count),
      "kl": Mean(kl, jnp.sum(anchored)),
    }
