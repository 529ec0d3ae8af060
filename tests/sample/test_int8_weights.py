"""The sampler's copy of the weights in int8."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import CONFIG, HYBRID, init_params, make_mesh, sampling
from test_sampler import PROMPTS, assert_same
from test_score import with_adapter

from bct_jax.config import from_dict
from bct_jax.config.eval_types import SamplingConfig
from bct_jax.mesh import path_name
from bct_jax.models.decoder import Decoder
from bct_jax.models.lora import Weights
from bct_jax.models.modules import quantize
from bct_jax.runtime.programs import MeshModel
from bct_jax.runtime.runtime import make_decoder
from bct_jax.sample.sampler import make_sampler
from configs import tiny

MOE = dataclasses.replace(CONFIG, num_experts=4, experts_per_token=2)


def make(architecture, mesh, weight_dtype="int8"):
  raw = tiny.get_config()
  raw.sampling.weight_dtype = weight_dtype
  return MeshModel(from_dict(raw.to_dict()), Decoder(architecture), mesh)


def rounded(params):
  """The params with the matrices of layers as int8 keeps them."""

  def one(path, x):
    if not path_name(path).endswith("/kernel"):
      return x
    values, scale = quantize(x, -2)
    return values * scale[..., None, :]

  return {
    **params,
    "layers": jax.tree_util.tree_map_with_path(one, params["layers"]),
  }


def sample(model, weights):
  config = sampling(max_new_tokens=12, batch_size=4)
  run = make_sampler(model.model, config, (5, 6, 7), model.mesh)
  with jax.set_mesh(model.mesh):
    return run(model.decode_params(weights), PROMPTS, range(len(PROMPTS)), 0)


@pytest.mark.long
@pytest.mark.parametrize(
  ("architecture", "adapted"),
  [
    (CONFIG, True),
    (HYBRID, False),
  ],
  ids=["dense, with an adapter", "hybrid"],
)
def test_samples_are_those_of_the_rounded_weights(architecture, adapted):
  mesh = make_mesh(2, 2, 2)
  model = make(architecture, mesh)
  with jax.set_mesh(mesh):
    params = init_params(model.model, mesh)
    weights = with_adapter(params) if adapted else Weights(params)
    want = weights._replace(params=rounded(params))
  assert_same(
    sample(model, weights), sample(make(architecture, mesh, "auto"), want)
  )


def test_matrices_take_a_byte_and_the_rest_stays():
  model = make(CONFIG, make_mesh(1, 2, 4))
  shapes = model.abstract_decode()
  found = {path_name(p): x for p, x in jax.tree.leaves_with_path(shapes)}
  for name, x in found.items():
    want = jnp.int8 if name.endswith("/kernel") else jnp.float32
    assert x.dtype == want, name
  down = found["layers/0/mlp/down/kernel_scale"]
  up = found["layers/0/mlp/up/kernel_scale"]
  assert down.sharding.is_fully_replicated
  assert not up.sharding.is_fully_replicated


def test_a_rounded_weight_is_off_by_half_a_step_at_most():
  x = jax.random.normal(jax.random.PRNGKey(0), (64, 8)).at[:, 3].set(0)
  values, scale = quantize(x, -2)
  error = np.abs(values * scale - x)
  assert (error <= np.abs(x).max(axis=0) / 127 / 2 + 1e-7).all()
  assert not values[:, 3].any()


def test_experts_are_refused():
  config = make(MOE, make_mesh()).config
  with pytest.raises(ValueError, match="weight_dtype.*experts"):
    make_decoder(MOE, config)


def test_hashes_of_runs_without_it_stay():
  plain = from_dict(tiny.get_config().to_dict()).sampling
  assert set(plain.facts()) == {
    f.name for f in dataclasses.fields(SamplingConfig)
  } - {"weight_dtype"}
  rounding = dataclasses.replace(plain, weight_dtype="int8")
  assert rounding.facts() == {**plain.facts(), "weight_dtype": "int8"}
