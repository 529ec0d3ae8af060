"""Low-rank adapters: the maths; test_load_peft.py compares with peft."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import (
  CONFIG,
  HYBRID,
  LORA,
  OPTIM,
  abstract,
  init_params,
  make_mesh,
  make_rows,
  random_adapter,
)

from bct_jax import mesh as meshes
from bct_jax.config import LoraConfig
from bct_jax.models import decoder, lora
from bct_jax.models.lora import Weights
from bct_jax.objectives import sft
from bct_jax.train import optim
from bct_jax.train.params_view import Frozen, ParamsView
from bct_jax.train.step import make_train_step
from bct_jax.types import TrainState

MODEL = decoder.Decoder(CONFIG)


def logits(params, tokens, model=MODEL):
  at = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  hidden = model.hidden(params, tokens, at, jnp.ones_like(tokens))
  return model.logits(params, hidden)


@pytest.fixture(scope="module")
def params():
  return init_params(MODEL, make_mesh())


@pytest.fixture(scope="module")
def tokens():
  return jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 12)))


def test_a_new_adapter_changes_nothing(params, tokens):
  shapes = lora.abstract_adapter(abstract(params), CONFIG, LORA)
  adapter = lora.init_adapter(shapes, 3)
  joined = lora.attach_adapter(Weights(params, adapter, LORA))
  np.testing.assert_array_equal(logits(joined, tokens), logits(params, tokens))
  a = adapter["layers"]["attn"]["q"]["lora_a"]
  assert 0.9 / 32**0.5 < np.abs(a).max() <= 1 / 32**0.5
  other = lora.init_adapter(shapes, 4)["layers"]["attn"]["q"]["lora_a"]
  assert not np.array_equal(a, other)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", ["_proj$", r"self_attn\.(q|v)_proj"])
def test_joined_folded_and_by_hand(params, tokens, targets, rslora):
  config = LoraConfig(4, 8.0, targets, rslora)
  adapter = random_adapter(params, config=config)
  weights = Weights(params, adapter, config)
  scale = 8 / 2 if rslora else 8 / 4
  by_hand = jax.tree.map(np.array, params)
  for part, names in (("attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
    for name in names:
      low = adapter["layers"].get(part, {}).get(name)
      if low is not None:
        for i in range(2):
          kernel = by_hand["layers"][part][name]["kernel"]
          kernel[i] += scale * np.asarray(low["lora_a"][i] @ low["lora_b"][i])
  changed = {k for k in "qkvo" if k in adapter["layers"]["attn"]}
  assert changed == (set("qkvo") if targets == "_proj$" else set("qv"))
  want = logits(by_hand, tokens)
  assert np.abs(want - logits(params, tokens)).max() > 0.1
  np.testing.assert_allclose(
    logits(lora.attach_adapter(weights), tokens), want, atol=2e-5
  )
  np.testing.assert_allclose(
    logits(lora.merge_adapter(weights), tokens), want, atol=2e-5
  )


def test_default_targets_are_all_projections_but_of_decays_and_rates():
  for fused, names in ((False, ("qkv", "z")), (True, ("qkvz",))):
    net = dataclasses.replace(HYBRID.delta, fused=fused)
    model = dataclasses.replace(
      HYBRID, delta=net, num_experts=4, experts_per_token=2, shared_width=16
    )
    targets = lora.target_layers(model, LORA)
    assert set(targets) == {
      *(f"attn/{x}" for x in "qkvo"),
      *(f"deltanet/{x}" for x in (*names, "out")),
      *(f"{x}/{y}" for x in ("mlp", "shared") for y in ("gate", "up", "down")),
    }
    gates = LoraConfig(2, 8.0, r"in_proj_(b|a|ba)$", False)
    assert len(lora.target_layers(model, gates)) == 2 - fused


def test_targets_that_fit_nothing_are_refused(params):
  shapes = abstract(params)
  for config, message in (
    (LoraConfig(4, 8.0, "q_prj", False), "matches no linear layer.*q_proj"),
    (LoraConfig(33, 8.0, "_proj$", False), "rank = 33: attn/q is only 32 x 32"),
  ):
    with pytest.raises(ValueError, match=message):
      lora.abstract_adapter(shapes, CONFIG, config)


def one_step(shape):
  """An update of the adapter alone, on a mesh."""
  mesh = make_mesh(*shape)
  with jax.set_mesh(mesh):
    params = init_params(MODEL, mesh)
    adapter = random_adapter(params)
    tx = optim.make_optimizer(OPTIM)
    state = TrainState(
      jnp.int32(0), adapter, jax.jit(tx.init)(adapter), jax.random.PRNGKey(0)
    )
    moments = [x.size for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(moments) == 2 * sum(x.size for x in jax.tree.leaves(adapter))
    place = jax.tree.map(
      lambda _: meshes.NamedSharding(mesh, meshes.P()), state
    )
    at = jax.tree.map(lambda x: x.sharding, adapter)
    place = place.replace(params=at)
    step = make_train_step(
      sft,
      MODEL,
      tx,
      place,
      Frozen(jax.tree.map(lambda x: x.sharding, params)),
      mesh,
      view=ParamsView(lora=LORA),
    )
    state = jax.device_put(state, place)
    batch = meshes.put_batch(make_rows(), mesh)
    before = jax.tree.map(np.asarray, params)
    state, metrics = step(state, Frozen(params), batch, jnp.float32(1e-2))
    # The base is neither changed nor given away.
    jax.tree.map(np.testing.assert_array_equal, before, params)
    return jax.tree.map(np.asarray, state.params), float(metrics["grad_norm"])


@pytest.mark.long
def test_one_update_on_two_meshes():
  one, norm = one_step((1, 1, 1))
  other, other_norm = one_step((2, 2, 2))
  assert norm == pytest.approx(other_norm, rel=1e-4)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, other
  )
