"""Adapters of a mixture's experts: the maths, on one device and on several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import long_but
from helpers import (
  CLAMPED,
  GATED,
  LORA,
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

FORMS = {"gated": GATED, "clamped": CLAMPED}
NAMES = {"gated": ("gate", "up", "down"), "clamped": ("gate_up", "down")}


@pytest.fixture(params=long_but(["gated"], list(FORMS)))
def form(request):
  return request.param


def logits(config, params, tokens):
  model = decoder.Decoder(config)
  at = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
  return model.logits(
    params, model.hidden(params, tokens, at, jnp.ones_like(tokens))
  )


@pytest.fixture(scope="module")
def tokens():
  return jnp.asarray(np.random.default_rng(0).integers(0, 96, (2, 12)))


def made(form, config=LORA, mesh=None, seed=0, experts="weights"):
  model = FORMS[form]
  run = decoder.Decoder(model, experts=experts)
  params = init_params(run, mesh or make_mesh())
  return params, Weights(
    params, random_adapter(params, model, config, seed), config
  )


@pytest.mark.long
def test_a_new_adapter_changes_nothing(form, tokens):
  model = FORMS[form]
  params, _ = made(form)
  shapes = lora.abstract_adapter(abstract(params), model, LORA)
  adapter = lora.init_adapter(shapes, 3)
  joined = lora.attach_adapter(Weights(params, adapter, LORA))
  np.testing.assert_array_equal(
    logits(model, joined, tokens), logits(model, params, tokens)
  )
  a = adapter["layers"]["mlp"]["down"]["lora_a"]
  assert a.shape == (2, 8, 24, 4)
  assert 0.9 / 24**0.5 < np.abs(a).max() <= 1 / 24**0.5
  assert not np.array_equal(a[0, 0], a[0, 1])


@pytest.mark.long
@pytest.mark.parametrize(
  "config",
  [
    LORA,
    LoraConfig(4, 8.0, r"mlp\.experts\.\d*\.?.*_proj", True),
    LoraConfig(4, 8.0, "_proj$", False, split_rank=True),
  ],
  ids=["all", "experts", "split"],
)
def test_joined_merged_and_by_hand(form, config, tokens):
  model = FORMS[form]
  params, weights = made(form, config)
  by_hand = jax.tree.map(np.array, params)
  layers = weights.adapter["layers"]
  rank = 2 if config.split_rank else 4
  assert ("attn" in layers) == (config.targets == "_proj$")
  for name in NAMES[form]:
    low = layers["mlp"][name]
    assert low["lora_a"].shape[-1] == rank == low["lora_b"].shape[-2]
    scale = 8 / rank**0.5 if config.rslora else 8 / rank
    for i, e in np.ndindex(2, 8):
      change = np.asarray(low["lora_a"][i, e] @ low["lora_b"][i, e])
      by_hand["layers"]["mlp"][name][i, e] += scale * change
  for name, low in layers.get("attn", {}).items():
    for i in range(2):
      change = np.asarray(low["lora_a"][i] @ low["lora_b"][i])
      by_hand["layers"]["attn"][name]["kernel"][i] += 8 / 4 * change
  want = logits(model, by_hand, tokens)
  assert np.abs(want - logits(model, params, tokens)).max() > 0.1
  for joined in (lora.attach_adapter(weights), lora.merge_adapter(weights)):
    np.testing.assert_allclose(logits(model, joined, tokens), want, atol=5e-5)


def loss_and_gradients(form, shape, merged, experts="weights"):
  """Of the adapter, beside its kernels or made part of them."""
  mesh = make_mesh(*shape)
  model = decoder.Decoder(FORMS[form], experts=experts)
  with jax.set_mesh(mesh):
    params, weights = made(form, mesh=mesh, experts=experts)
    batch = meshes.put_batch(make_rows(), mesh)
    join = lora.merge_adapter if merged else lora.attach_adapter

    def mean(adapter):
      joined = join(Weights(params, adapter, LORA))
      return sft(joined, batch, jax.random.PRNGKey(0), model)[0].value()

    out = jax.jit(jax.value_and_grad(mean))(weights.adapter)
    return jax.tree.map(np.asarray, out)


@pytest.mark.long
@pytest.mark.parametrize(
  ("shape", "experts"),
  long_but(
    [((1, 1, 1), "weights")],
    [
      ((1, 1, 1), "weights"),
      ((2, 2, 2), "weights"),
      ((2, 1, 4), "weights"),
      ((1, 4, 2), "tokens"),
      ((2, 2, 2), "tokens"),
    ],
  ),
  ids=str,
)
def test_gradients_are_those_of_merged_weights(form, shape, experts):
  value, grads = loss_and_gradients(form, shape, False, experts)
  want_value, want = loss_and_gradients(form, (1, 1, 1), merged=True)
  assert value == pytest.approx(want_value, rel=1e-5)
  for name in NAMES[form]:
    for part in ("lora_a", "lora_b"):
      ours = grads["layers"]["mlp"][name][part]
      theirs = want["layers"]["mlp"][name][part]
      largest = np.abs(theirs).max()
      assert largest > 0
      np.testing.assert_allclose(ours, theirs, atol=1e-4 * largest)


@pytest.mark.long
@pytest.mark.parametrize(
  ("shape", "experts"),
  long_but(
    [((1, 1, 1), "weights")],
    [
      ((1, 1, 1), "weights"),
      ((2, 1, 2), "weights"),
      ((1, 2, 2), "tokens"),
    ],
  ),
  ids=str,
)
def test_rows_of_several_arms_take_their_own(form, shape, experts, tokens):
  """Adapters of other ranks and layers, and an arm without one."""
  model, mesh = FORMS[form], make_mesh(*shape)
  run = decoder.Decoder(model, experts=experts)
  with jax.set_mesh(mesh):
    params, first = made(form, mesh=mesh, experts=experts)
    narrow = LoraConfig(2, 4.0, "experts.*down_proj$", False)
    second = Weights(params, random_adapter(params, model, narrow, 5), narrow)
    arms = [first, Weights(params), second]

    @jax.jit
    def prefill(params, tokens, arms=None):
      at = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
      hidden, _ = run.prefill(params, tokens, at, jnp.ones_like(at), None, arms)
      return run.logits(params, hidden)

    rows = jnp.concatenate([tokens] * 3)
    of_row = jnp.repeat(jnp.arange(3), 2)[:, None] + jnp.zeros_like(rows)
    together = run.unstack(lora.attach_adapters(arms))
    found = prefill(together, rows, of_row)
    for i, arm in enumerate(arms):
      alone = run.unstack(lora.attach_adapter(arm) if arm.lora else arm.params)
      np.testing.assert_allclose(
        found[2 * i : 2 * i + 2], prefill(alone, tokens), atol=5e-5
      )
    assert np.abs(found[:2] - found[2:4]).max() > 0.1


def test_what_does_not_fit_is_refused(form):
  model = FORMS[form]
  params, _ = made(form)
  for config, message in (
    (LoraConfig(3, 8.0, "_proj$", False, True), "rank = 3 does not divide"),
    (LoraConfig(25, 8.0, "down_proj$", False), "rank = 25: mlp/down is only"),
    (LoraConfig(4, 8.0, "router", False), "matches no linear layer"),
  ):
    with pytest.raises(ValueError, match=message):
      lora.abstract_adapter(abstract(params), model, config)
  if form == "gated":
    some = LoraConfig(4, 8.0, r"experts\.3\.up_proj", False)
    with pytest.raises(ValueError, match="some experts of mlp.experts.N.up"):
      lora.target_layers(model, some)
