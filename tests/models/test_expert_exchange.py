"""Tokens sent to their experts: the same numbers as weights that are gathered.

The other side is always `experts = "weights"`, mostly on one device.
"""

import dataclasses
import re

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
  make_step,
  random_adapter,
  rules_of,
  run_steps,
  sampling,
)

from bct_jax import mesh as meshes
from bct_jax.models import decoder, lora, partition
from bct_jax.models.lora import Weights
from bct_jax.objectives import sft
from bct_jax.sample import sampler
from bct_jax.sizing import hlo
from bct_jax.train.checkpoint import Checkpoints

FORMS = {
  "gated": GATED,
  "clamped": CLAMPED,
  "shared": dataclasses.replace(GATED, shared_width=24),
}


def model_of(form, experts, count=8):
  config = dataclasses.replace(FORMS[form], num_experts=count)
  return decoder.Decoder(config, experts=experts)


def loss_and_gradients(model, shape, skewed=False):
  """Of `sft` on 8 rows of 16.

  A router of zeros is `skewed`: it sends all tokens to the first two experts.
  """
  mesh = make_mesh(*shape)
  with jax.set_mesh(mesh):
    params = init_params(model, mesh)
    if skewed:
      mlp = params["layers"]["mlp"]
      mlp["router"] = jnp.zeros_like(mlp["router"])
    batch = meshes.put_batch(make_rows(), mesh)

    def mean(params):
      return sft(params, batch, jax.random.PRNGKey(0), model)[0].value()

    out = jax.jit(jax.value_and_grad(mean))(params)
    return jax.tree.map(np.asarray, out)


def assert_close(found, wanted):
  for (path, ours), theirs in zip(
    jax.tree_util.tree_leaves_with_path(found),
    jax.tree.leaves(wanted),
    strict=True,
  ):
    atol = 2e-5 * np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=atol, err_msg=str(path))


# On 2 x 4 devices 4 experts are parts: fsdp has whole ones, tensor their width.
CASES = [
  ("gated", 8, (1, 4, 2), True),
  ("gated", 8, (1, 4, 2), False),
  ("gated", 8, (2, 2, 2), True),
  ("gated", 8, (1, 8, 1), True),
  ("gated", 8, (2, 1, 4), False),
  ("gated", 4, (1, 2, 4), False),
  ("clamped", 8, (1, 4, 2), True),
  ("clamped", 4, (1, 4, 2), False),
  ("clamped", 4, (2, 2, 2), True),
  ("shared", 8, (2, 2, 2), False),
]


@pytest.mark.parametrize(
  ("form", "count", "shape", "skewed"), long_but([CASES[0], CASES[7]], CASES)
)
def test_loss_and_gradients_are_those_of_gathered_weights(
  form, count, shape, skewed
):
  want = loss_and_gradients(model_of(form, "weights", count), (1, 1, 1), skewed)
  found = loss_and_gradients(model_of(form, "tokens", count), shape, skewed)
  assert_close(found, want)


@pytest.mark.long
@pytest.mark.parametrize("form", ["gated", "clamped"])
def test_adapters_are_where_parts_of_experts_are(form):
  """Which 4 experts are, over 4 x 2 devices."""

  def gradients(experts, shape):
    model, mesh = model_of(form, experts, 4), make_mesh(*shape)
    with jax.set_mesh(mesh):
      params = init_params(model, mesh)
      adapter = random_adapter(params, model.config, LORA)
      batch = meshes.put_batch(make_rows(), mesh)

      def mean(adapter):
        joined = lora.attach_adapter(Weights(params, adapter, LORA))
        return sft(joined, batch, jax.random.PRNGKey(0), model)[0].value()

      return jax.tree.map(np.asarray, jax.jit(jax.grad(mean))(adapter))

  assert_close(gradients("tokens", (1, 4, 2)), gradients("weights", (1, 1, 1)))


def test_weights_of_experts_stay_where_they_are():
  """Neither gathered nor summed: no such array is in a collective."""

  def received(experts):
    model, mesh = model_of("gated", experts), make_mesh(1, 4, 2)
    with jax.set_mesh(mesh):
      shapes = abstract(init_params(model, mesh))
      batch = meshes.put_batch(make_rows(), mesh)

      def mean(params):
        return sft(params, batch, jax.random.PRNGKey(0), model)[0].value()

      text = jax.jit(jax.grad(mean)).lower(shapes).compile().as_text()
    return {
      c.kind
      for c in hlo.collectives(text)
      if c.received and re.search(r"\b24\b", c.array)  # the width inside
    }

  assert received("weights") == {"all-gather", "all-reduce"}
  assert received("tokens") == set()


@pytest.mark.long
@pytest.mark.parametrize(
  "change",
  [
    {"shape": (1, 4, 2)},
    {"shape": (2, 2, 2), "batch_size": 16},
    {"shape": (1, 2, 4), "count": 4},
    {"shape": (1, 4, 1), "prefill_tokens": 256, "form": "clamped"},
  ],
  ids=str,
)
def test_samples_are_the_same(change):
  """With a shared beginning, which is a row that all devices run."""
  begin = list(range(10, 29))
  rng = np.random.default_rng(3)
  prompts = [[*begin, *map(int, rng.integers(1, 96, n))] for n in range(1, 11)]

  def sample(experts, shape=(1, 1, 1), count=8, form="gated", **options):
    model, mesh = model_of(form, experts, count), make_mesh(*shape)
    with jax.set_mesh(mesh):
      params = init_params(model, mesh)
      shapes = jax.eval_shape(model.unstack, params)
      place = meshes.shardings(shapes, rules_of(model, mesh, True), mesh)
      params = jax.jit(model.unstack, out_shardings=place)(params)
      config = sampling(temperature=1.0, **options)
      run = sampler.make_sampler(model, config, frozenset((5, 6, 7)), mesh)
      return run(params, prompts, range(10), 0)

  same = {k: v for k, v in change.items() if k in ("count", "form")}
  found, wanted = sample("tokens", **change), sample("weights", **same)
  for a, b in zip(found, wanted, strict=True):
    assert a.tokens == b.tokens and a.stopped == b.stopped
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


@pytest.mark.long
def test_a_checkpoint_goes_on_the_other_way(tmp_path):
  def setup(experts, shape):
    mesh = make_mesh(*shape)
    return make_step(sft, mesh, config=GATED, experts=experts, remat="full")

  batches = [make_rows(seed=seed) for seed in range(3)]
  first = setup("weights", (1, 2, 2))
  _, _, state = run_steps(first, batches[:1])
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(state, {})
  finals = []
  for experts in ("weights", "tokens"):
    other = setup(experts, (1, 4, 2))
    with jax.set_mesh(other.mesh):
      other.state = checkpoints.restore(abstract(other.state))
    finals.append(run_steps(other, batches[1:])[1])
  checkpoints.close()
  assert_close(*finals)


@pytest.mark.parametrize(
  ("count", "width", "fsdp", "tensor", "message"),
  [
    (8, 24, 3, 1, "fsdp = 3 does not divide 8 experts"),
    (8, 24, 16, 1, "fsdp = 16 does not divide 8 experts"),
    (4, 25, 4, 2, "= 8 do not divide 4 experts, nor tensor = 2 their width 25"),
  ],
)
def test_what_does_not_divide_is_named(count, width, fsdp, tensor, message):
  config = dataclasses.replace(GATED, num_experts=count, mlp_width=width)
  with pytest.raises(ValueError, match=f'mesh.experts = "tokens": .*{message}'):
    partition.rules(config, tensor, experts_fsdp=fsdp)
