"""The table of ParamsView: what is trained, frozen and compared with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bct_jax.config import LoraConfig
from bct_jax.models.lora import Weights, attach_adapter
from bct_jax.train.params_view import Frozen, ParamsView

LORA = LoraConfig(2, 4.0, "q", False)
PARAMS = {
  "layers": {"q": {"kernel": jnp.ones((1, 3, 3))}},
  "embed": jnp.ones(3),
}


def adapter(value):
  leaves = {"lora_a": jnp.ones((1, 3, 2)), "lora_b": jnp.ones((1, 2, 3))}
  return {"layers": {"q": jax.tree.map(lambda x: value * x, leaves)}}


OWN, TRAINED = adapter(1.0), adapter(2.0)
OTHER = jax.tree.map(lambda x: 2 * x, PARAMS)


def plus(low):
  return attach_adapter(Weights(PARAMS, low, LORA))


@pytest.mark.parametrize(
  ("view", "trained", "frozen", "params", "reference"),
  [
    (ParamsView(), OTHER, None, OTHER, None),
    (ParamsView(reference=True), OTHER, Frozen(PARAMS), OTHER, PARAMS),
    (ParamsView(LORA), TRAINED, Frozen(PARAMS), plus(TRAINED), None),
    (ParamsView(LORA, True), TRAINED, Frozen(PARAMS), plus(TRAINED), PARAMS),
    (
      ParamsView(LORA, False, True),
      TRAINED,
      Frozen(PARAMS),
      plus(TRAINED),
      None,
    ),
    (
      ParamsView(LORA, True, True),
      TRAINED,
      Frozen(PARAMS, OWN),
      plus(TRAINED),
      plus(OWN),
    ),
  ],
)
def test_the_table(view, trained, frozen, params, reference):
  begin = Weights(PARAMS, OWN, LORA) if view.continued else Weights(PARAMS)

  def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)

  same(view.frozen_part(begin), frozen)
  assert view.freezes == (frozen is not None)
  same(view.model_params(trained, frozen), params)
  if reference is None:
    with pytest.raises(AssertionError):
      view.reference_params(frozen)
  else:
    same(view.reference_params(frozen), reference)


def test_an_average_is_kept_where_it_is_asked_for():
  one, trained = jnp.int32(1), {"embed": jnp.full(3, 2.0)}
  average = jax.tree.map(jnp.zeros_like, trained)
  assert ParamsView().update_average(None, trained, one) is None
  new = ParamsView(ema_decay=0.5).update_average(average, trained, one)
  # After one update the average is the weights themselves.
  np.testing.assert_array_equal(new["embed"], trained["embed"])


def test_runs_that_cannot_be_are_refused():
  with pytest.raises(ValueError, match="rank 0"):
    ParamsView(LoraConfig(0, 1.0, "", False))
  with pytest.raises(ValueError, match="cannot go on with an adapter"):
    ParamsView(continued=True)
