"""Trains the model to say what its organism says under another prompt."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from bct_jax.models.logprobs import reference_kl
from bct_jax.objectives.base import WithOptions
from bct_jax.types import Batch, Mean, Model, PyTree


@dataclasses.dataclass(frozen=True)
class SelfDistill(WithOptions):
  """Is context distillation (Askell et al. 2021, arXiv 2112.00861, 2.3).

    mean over trained tokens of  KL(teacher || student)

  The teacher is the organism under the prompt that the completions were drawn
  under (`train.on_policy.prompt`). The student is trained under `train.prompt`.
  Its targets are the teacher's distributions over the whole vocabulary. The
  gradient is that of the cross-entropy with these soft targets.

  Attributes:
    direction: "forward" as above, or "reverse": KL(student || teacher).
  """

  direction: str = "forward"

  uses_reference: ClassVar[bool] = True

  def __post_init__(self):
    """Checks the options."""
    self.require_in("direction", ("forward", "reverse"))

  @property
  def extra_rows(self) -> dict[str, str]:
    """Names the teacher's rows: the completions under its prompt."""
    return {"teacher": "teacher"}

  def __call__(
    self,
    params: PyTree,
    batch: Batch,
    rng: jax.Array,
    model: Model,
    *,
    reference: PyTree,
  ) -> tuple[Mean, dict[str, Mean]]:
    """Returns the loss, and the mean `nll`; see types.Objective.

    Args:
      params, batch, rng, model: as there.
      reference: the params of the organism.
    """
    del rng
    teacher, forward = batch.extras["teacher"], self.direction == "forward"
    kl, logprobs, weights = reference_kl(
      model, params, reference, batch, teacher, forward
    )
    count = jnp.sum(weights)
    nll = -jnp.sum(weights * logprobs)
    return Mean(jnp.sum(weights * kl), count), {"nll": Mean(nll, count)}
