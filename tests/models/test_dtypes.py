"""bfloat16: what stays float32, and how far the loss may be off."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import long_but
from helpers import CONFIG, init_params, make_mesh, make_rows

from bct_jax import mesh as meshes
from bct_jax.config import from_dict
from bct_jax.experiment.plan import make_plan
from bct_jax.models.decoder import Decoder
from bct_jax.objectives import sft
from bct_jax.runtime.weights import load_weights
from configs import tiny

# Where bfloat16's 8 bits of precision would do harm.
FULL_PRECISION = {"exp", "log", "rsqrt", "cos", "sin"}


def loss(params, batch, dtype):
  value, _ = sft(params, batch, jax.random.PRNGKey(0), Decoder(CONFIG, dtype))
  return value.value()


@pytest.fixture(scope="module")
def setup():
  mesh = make_mesh()
  params = init_params(Decoder(CONFIG), mesh)
  return params, meshes.put_batch(make_rows(), mesh)


@pytest.mark.long
def test_bfloat16_loss_is_near_the_float32_loss(setup):
  full, half = (float(loss(*setup, d)) for d in (jnp.float32, jnp.bfloat16))
  assert half != full
  assert half == pytest.approx(full, rel=0.01)


def equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      for inner in value if isinstance(value, (list, tuple)) else [value]:
        inner = getattr(inner, "jaxpr", inner)
        if hasattr(inner, "eqns"):
          yield from equations(inner)


def test_softmax_norms_angles_and_loss_are_float32(setup):
  program = jax.make_jaxpr(jax.grad(loss), static_argnums=2)(
    *setup, jnp.bfloat16
  )
  found = {}
  for equation in equations(program.jaxpr):
    name = equation.primitive.name
    for x in equation.invars:
      found.setdefault(name, set()).add(getattr(x.aval, "dtype", None))
  assert set(found) >= FULL_PRECISION
  for name in FULL_PRECISION:
    assert found[name] == {jnp.dtype("float32")}, name
  assert jnp.dtype("bfloat16") in found["dot_general"]
  grads = jax.eval_shape(lambda p, b: jax.grad(loss)(p, b, "bfloat16"), *setup)
  assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


@pytest.mark.long
@pytest.mark.parametrize(
  "param_dtype", long_but(["bfloat16"], ["float32", "bfloat16"])
)
def test_master_weights(tiny_folder, param_dtype):
  values = tiny.get_config().to_dict()
  values["model"] |= {
    "path": str(tiny_folder),
    "dtype": "bfloat16",
    "param_dtype": param_dtype,
  }
  plan = make_plan(from_dict(values))
  runtime, arm = plan.runtime, plan.config.arms["high"]
  data = plan.arms["high"]
  with jax.set_mesh(runtime.mesh):
    weights = load_weights(runtime, None)
    before = jax.tree.map(np.asarray, weights.params)
    state = runtime.init_state(weights, arm)
    kept = {x.dtype for x in jax.tree.leaves(state.params)}
    assert kept == {jnp.dtype(param_dtype)}
    batch = meshes.put_batch(data.batch(0), runtime.mesh)
    state, metrics = runtime.step(arm)(state, None, batch, jnp.float32(1e-2))
    assert np.isfinite(float(metrics["loss"]))
    moments = {x.dtype for x in jax.tree.leaves(state.opt_state) if x.ndim}
    assert moments == {jnp.dtype("float32")}
    kept = {x.dtype for x in jax.tree.leaves(state.params)}
    assert kept == {jnp.dtype(param_dtype)}
    moved = jax.tree.map(lambda a, b: (a != b).any(), before, state.params)
    assert all(jax.tree.leaves(moved))
