"""Fine-tunes on examples and holds the model near its organism."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bct_jax.models.logprobs import reference_kl, token_logprobs
from bct_jax.objectives.base import WithOptions
from bct_jax.types import Batch, Mean, Model, PyTree


@dataclasses.dataclass(frozen=True)
class KlToRef(WithOptions):
  """Adds to sft beta times the divergence from the organism.

    mean over trained tokens of  -log p(y_t) + beta KL_t

  KL_t compares the two next-token distributions at a trained position, over the
  whole vocabulary, in nats. Other prompts than the train prompts go with one
  example each: the weights of their tokens add up to those of the example.

  Attributes:
    beta: the weight of the divergence.
    direction: forward is KL(organism || model), which asks the model to cover
      all that the organism would say; reverse is KL(model || organism).
    prompts: where the divergence is taken: "train" is on the examples, and
      "install" on the prompts that the initial behavior is installed with. A
      path is a file of JSON lines, {"messages": [...]} with the completion as
      an assistant message at the end. Prompts repeat as often as needed.
  """

  beta: float = 0.1
  direction: str = "forward"
  prompts: str = "train"

  uses_reference: ClassVar[bool] = True

  def __post_init__(self):
    """Checks the options."""
    self.require("beta", self.beta >= 0, "0 (off) or above")
    self.require_in("direction", ("forward", "reverse"))
    is_name = self.prompts in ("train", "install")
    good = is_name or self.prompts.endswith(".jsonl")
    self.require("prompts", good, "'train', 'install' or a path of a .jsonl")

  @property
  def extra_rows(self) -> dict[str, str]:
    """Names the rows of the divergence, unless these are the examples."""
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
    """Returns the loss, and the means `nll` and `kl`; see types.Objective.

    Args:
      params, batch, rng, model: as there.
      reference: the params of the organism.
    """
    del rng
    forward = self.direction == "forward"
    anchor = batch if self.prompts == "train" else batch.extras["anchor"]
    kl, logprobs, anchor_weights = reference_kl(
      model, params, reference, anchor, anchor, forward
    )
    weights = anchor_weights  # [B, R]
    if self.prompts != "train":
      logprobs, weights = token_logprobs(model, params, batch)
    count = jnp.sum(weights)
    nll = -jnp.sum(weights * logprobs)
    kl = jnp.sum(anchor_weights * kl)
    return Mean(nll + self.beta * kl, count), {
      "nll": Mean(nll, count),
      "kl": Mean(kl, jnp.sum(anchor_weights)),
    }
