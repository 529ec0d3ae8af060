"""The train step: exact over meshes and microbatches, and strict."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import long_but
from helpers import make_mesh, make_rows, make_step, run_steps

from bct_jax.mesh import put_batch
from bct_jax.objectives import sft
from bct_jax.train.loop import FitConfig, Lane, fit
from bct_jax.train.together import update_in_turn
from bct_jax.types import Mean, TrainState

MESHES = [(1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2)]
BATCHES = [make_rows(seed=s) for s in range(3)]


@pytest.fixture(scope="module")
def reference():
  return run_steps(make_step(sft, make_mesh()), BATCHES)


@pytest.mark.parametrize(
  ("shape", "accum"),
  long_but(
    [((2, 2, 2), 2)],
    [(s, a) for s in MESHES for a in (1, 2, 4) if 8 // a % (s[0] * s[1]) == 0],
  ),
  ids=str,
)
def test_result_depends_neither_on_mesh_nor_accumulation(
  shape, accum, reference
):
  setup = make_step(sft, make_mesh(*shape), accum)
  metrics, params, _ = run_steps(setup, BATCHES)
  for ours, theirs in zip(metrics, reference[0], strict=True):
    assert ours["weight"] == theirs["weight"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
    assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
    params,
    reference[1],
  )


def test_rows_are_unequal_enough_to_tell():
  """A mean of microbatch means would differ on these rows by far."""
  weights = BATCHES[0].weights.sum(axis=1)
  assert weights.max() >= 3 * weights.min()


def test_compiles_once_and_donates():
  setup = make_step(sft, make_mesh(2, 2, 2))
  before = jax.tree.leaves(setup.state.params)
  run_steps(setup, BATCHES * 2)
  assert setup.step._cache_size() == 1
  assert all(x.is_deleted() for x in before)


def test_learning_rate_is_a_value():
  setup = make_step(sft, make_mesh())
  start = jax.tree.map(np.asarray, setup.state.params)
  _, params, state = run_steps(setup, BATCHES[:1], lr=0.0)
  jax.tree.map(np.testing.assert_array_equal, start, params)
  setup.state = state
  run_steps(setup, BATCHES[:1], lr=0.5)
  assert setup.step._cache_size() == 1


def test_scalar_objective_is_a_type_error():
  def scalar(params, batch, rng, model):
    return jnp.mean(params["embed"])

  with pytest.raises(TypeError, match=r"Mean\(total, weight\)"):
    run_steps(make_step(scalar, make_mesh()), BATCHES[:1])


@pytest.mark.long
def test_extra_metrics_are_divided_once():
  def counting(params, batch, rng, model):
    loss, _ = sft(params, batch, rng, model)
    rows = jnp.float32(batch.tokens.shape[0])
    return loss, {"rows": Mean(jnp.sum(batch.weights), rows)}

  for accum in (1, 4):
    out, _, _ = run_steps(make_step(counting, make_mesh(), accum), BATCHES[:1])
    want = BATCHES[0].weights.sum() / 8
    assert out[0]["rows"] == pytest.approx(want, rel=1e-6)


def test_batch_without_trained_tokens_moves_nothing():
  setup = make_step(sft, make_mesh(), tx=optax.scale_by_adam())
  start = jax.tree.map(np.asarray, setup.state.params)
  rows = BATCHES[0]._replace(weights=np.zeros_like(BATCHES[0].weights))
  metrics, params, _ = run_steps(setup, [rows])
  assert metrics[0]["loss"] == 0 and metrics[0]["grad_norm"] == 0
  jax.tree.map(np.testing.assert_array_equal, start, params)


class Recorder:
  """Runs fit on a tiny state and writes down what it calls."""

  def __init__(self, bad_at=None):
    self.calls = []
    self.bad_at = bad_at

  def step(self, state, frozen, batch, lr):
    t = int(state.step)
    self.calls.append(f"update {t}")
    loss = jnp.float32(np.nan if t == self.bad_at else 1.0)
    return state.replace(step=state.step + 1), {"loss": loss}

  def fit(self, steps=4, every=2, evals=(0, 2), start=0):
    lane = Lane(
      TrainState(jnp.int32(start), {}, None, None),
      lambda t, state: ("rows", [f"row{t}"]),
      lambda t: 0.5,
      lambda t, state: self.calls.append(f"observe {t}"),
      lambda state: self.calls.append(f"save {int(state.step)}"),
      lambda values: self.calls.append(f"log {values['step']}"),
      FitConfig(steps, tuple(evals), every),
    )

    def evaluate(t, due):
      assert due == [lane]
      self.calls.append(f"eval {t}")

    fit([lane], None, update_in_turn(self.step), evaluate)
    return lane


def test_fit_order():
  r = Recorder()
  r.fit()
  assert r.calls == (
    "observe 0,eval 0,"
    "update 0,update 1,log 1,log 2,observe 2,save 2,eval 2,"
    "update 2,update 3,log 3,log 4,save 4"
  ).split(",")


def test_fit_continues_from_the_step_of_the_state():
  r = Recorder()
  r.fit(start=2)
  assert r.calls[:3] == ["observe 2", "eval 2", "update 2"]
  r = Recorder()
  r.fit(start=4, evals=(0, 4))
  assert r.calls == ["observe 4", "eval 4"]


@pytest.mark.parametrize("bad", [1, 3])
def test_nothing_is_saved_after_a_loss_that_is_not_finite(bad):
  r = Recorder(bad_at=bad)
  lane = r.fit()
  assert re.search(rf"update {bad + 1} .*row{bad}", str(lane.error))
  saved = [c for c in r.calls if c.startswith("save")]
  assert saved == ([] if bad == 1 else ["save 2"])


@pytest.mark.parametrize("accum", long_but([4], [1, 4]))
def test_gradient_is_that_of_the_mean_loss(accum):
  setup = make_step(sft, make_mesh(), accum)
  batch = put_batch(BATCHES[0], setup.mesh)

  def mean(params):
    return sft(params, batch, jax.random.PRNGKey(0), setup.model)[0].value()

  loss, grads = jax.jit(jax.value_and_grad(mean))(setup.state.params)
  metrics, _, _ = run_steps(setup, BATCHES[:1])
  assert metrics[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
  norm = float(optax.tree.norm(grads))
  assert metrics[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
