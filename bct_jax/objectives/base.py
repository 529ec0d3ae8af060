"""Declares what objectives with options share, and what data they may need."""

import dataclasses
from typing import ClassVar

import jax

from bct_jax.config import suggest
from bct_jax.types import Batch, Mean, Model, PyTree


@dataclasses.dataclass(frozen=True)
class WithOptions:
  """Is the base of objectives whose fields are options (`train.options`).

  A subclass has a `__call__` like `types.Objective`. It may need more:

  Attributes:
    uses_reference: whether it is called with `reference=`, the frozen params of
      the organism that the arm started from.
    counts_examples: whether it has one term for each example, not for each
      token. `train.normalizer` then does not apply.
    scored: whether the batch, and each batch of extra rows, has
      `extras["reference_logprob"]` [B, S]: log p(completion | prompt) under the
      organism, in nats, computed once before training.
    trains_on_own_samples: whether each batch is sampled from the weights that
      are trained (experiment/rl.py), not read from examples.
  """

  uses_reference: ClassVar[bool] = False
  counts_examples: ClassVar[bool] = False
  scored: ClassVar[bool] = False
  trains_on_own_samples: ClassVar[bool] = False

  @property
  def extra_rows(self) -> dict[str, str]:
    """Names the further rows of each example: name -> kind.

    They come as a batch in `extras[name]`, whose segments belong to those of
    the main batch, in the same order. A kind is a key of
    `training_pairs.EXTRA_ROWS`, or the path of a file with prompts and
    completions.
    """
    return {}

  def require(self, option: str, good: bool, what: str) -> None:
    """Raises ValueError with the option's name unless `good`."""
    if not good:
      raise ValueError(f"{option} = {getattr(self, option)!r}: must be {what}")

  def require_in(self, option: str, valid: tuple[str, ...]) -> None:
    """Raises ValueError with the option's name unless it is one of `valid`."""
    value = getattr(self, option)
    hint = suggest(str(value), valid)
    self.require(option, value in valid, f"one of {list(valid)}{hint}")

  def __call__(
    self, params: PyTree, batch: Batch, rng: jax.Array, model: Model
  ) -> tuple[Mean, dict[str, Mean]]:
    """Returns the loss and further Means to log; see types.Objective."""
    raise NotImplementedError
