"""What objectives with options share, and what they may ask of the data."""

import dataclasses
from typing import ClassVar

import jax

from bct_jax.config import suggest
from bct_jax.types import Batch, Mean, Model, PyTree


@dataclasses.dataclass(frozen=True)
class WithOptions:
  """An objective whose fields are its options (`train.options`).

  A subclass has a `__call__` like `types.Objective` and may ask for more:

  Attributes:
    uses_reference: it is called with `reference=`, the frozen params of the
      organism that the arm started from.
    counts_examples: it has one term for each example, not for each token, so
      that `train.normalizer` cannot choose.
    scored: `extras["reference_logprob"]` [B, S] of the batch and of each view:
      what the organism gives each completion, in nats, found once before
      training.
    trains_on_own_samples: each batch is drawn from the weights that are trained
      (rl.py), not read from examples.
  """

  uses_reference: ClassVar[bool] = False
  counts_examples: ClassVar[bool] = False
  scored: ClassVar[bool] = False
  trains_on_own_samples: ClassVar[bool] = False

  @property
  def extra_rows(self) -> dict[str, str]:
    """Further rows of each example: a batch in `extras[name]` -> its kind.

    Its segments are those of the batch, in the same order. Kinds are the keys
    of `training_pairs.EXTRA_ROWS`, or paths of files with prompts and
    completions.
    """
    return {}

  def require(self, option: str, good: bool, what: str) -> None:
    """Raises ValueError with the option's name unless `good`."""
    if not good:
      raise ValueError(f"{option} = {getattr(self, option)!r}: must be {what}")

  def require_in(self, option: str, valid: tuple[str, ...]) -> None:
    value = getattr(self, option)
    hint = suggest(str(value), valid)
    self.require(option, value in valid, f"one of {list(valid)}{hint}")

  def __call__(
    self, params: PyTree, batch: Batch, rng: jax.Array, model: Model
  ) -> tuple[Mean, dict[str, Mean]]:
    """See types.Objective."""
    raise NotImplementedError
