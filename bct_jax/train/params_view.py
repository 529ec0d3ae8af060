"""Says which params a train step trains, leaves frozen, and compares with."""

import dataclasses
from typing import NamedTuple

import jax

from bct_jax.config import LoraConfig
from bct_jax.models import lora
from bct_jax.models.lora import Weights
from bct_jax.train import optim
from bct_jax.types import PyTree


class Frozen(NamedTuple):
  """Holds what a train step reads and does not change.

  Attributes:
    params: the params that an adapter is over, or that the objective compares
      with.
    adapter: the adapter of the reference, where the arm trains a copy of it.
  """

  params: PyTree = None
  adapter: PyTree = None


@dataclasses.dataclass(frozen=True)
class ParamsView:
  """Says which params a step trains, leaves frozen, and shows its objective.

  A run begins with params P and perhaps an adapter A over them, those of the
  organism. The objective is called with `params` and perhaps with `reference`.
  P + A are the params P with the adapter A attached.

    run             trained T       frozen        params  reference
    full            begins as P     None          T       -
    ... compared    begins as P     Frozen(P)     T       P
    LoRA            a new adapter   Frozen(P)     P + T   -
    ... compared    a new adapter   Frozen(P)     P + T   P
    continued LoRA  begins as A     Frozen(P)     P + T   -
    ... compared    begins as A     Frozen(P, A)  P + T   P + A

  Each of the six may keep a weight average, `TrainState.ema`: float32, of the
  shapes of T. The step updates the average and never computes with it; evals
  and the last checkpoint use it in place of T (see step.eval_params).

  Attributes:
    lora: the adapter that is trained; None trains all params.
    reference: whether the objective is called with `reference=`.
    continued: whether the run goes on training an adapter that it begins with.
    ema_decay: the decay of the weight average; 0 keeps none.
  """

  lora: LoraConfig | None = None
  reference: bool = False
  continued: bool = False
  ema_decay: float = 0.0

  def __post_init__(self):
    if self.lora is not None and not self.lora.rank:
      raise ValueError("an adapter of rank 0: lora=None trains all params")
    if self.continued and self.lora is None:
      raise ValueError("a run over all params cannot go on with an adapter")

  @property
  def freezes(self) -> bool:
    """Returns whether a step needs params that it does not train."""
    return self.lora is not None or self.reference

  def frozen_part(self, begin: Weights) -> Frozen | None:
    """Returns what a step leaves frozen of the weights that a run begins with.

    The arrays are those of `begin`, not copies. Shapes may stand for arrays.
    """
    if not self.freezes:
      return None
    keeps_adapter = self.reference and self.continued
    return Frozen(begin.params, begin.adapter if keeps_adapter else None)

  def model_weights(self, trained: PyTree, frozen: Frozen | None) -> Weights:
    """Returns the weights that the model runs with."""
    if self.lora is None:
      return Weights(trained)
    assert frozen is not None
    return Weights(frozen.params, trained, self.lora)

  def reference_weights(self, frozen: Frozen | None) -> Weights:
    """Returns the weights that the objective compares with."""
    assert self.reference and frozen is not None
    if frozen.adapter is None:
      return Weights(frozen.params)
    return Weights(frozen.params, frozen.adapter, self.lora)

  def model_params(self, trained: PyTree, frozen: Frozen | None) -> PyTree:
    """Returns the params that the objective is called with."""
    return lora.attach_adapter(self.model_weights(trained, frozen))

  def reference_params(self, frozen: Frozen | None) -> PyTree:
    """Returns the params that the objective gets as `reference=`."""
    return lora.attach_adapter(self.reference_weights(frozen))

  def update_average(
    self, average: PyTree, trained: PyTree, updates: jax.Array
  ) -> PyTree:
    """Returns the weight average after some updates; None if none is kept.

    Args:
      average: the one before the newest update.
      trained: the trained weights after it.
      updates: [] int32, how many updates are done.
    """
    if not self.ema_decay:
      return None
    return optim.update_average(self.ema_decay, average, trained, updates)
