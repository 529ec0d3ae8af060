"""Checkpoints: whole, exact, on any mesh, refused when they do not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import make_mesh, make_rows, make_step, run_steps

from bct_jax.objectives import sft
from bct_jax.train import checkpoint
from bct_jax.train.checkpoint import Checkpoints

BATCHES = [make_rows(seed=s) for s in range(4)]


def abstract(state):
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state,
  )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A checkpoint after two steps, and the params after four."""
  setup = make_step(sft, make_mesh(2, 2, 2))
  _, _, setup.state = run_steps(setup, BATCHES[:2])
  folder = tmp_path_factory.mktemp("checkpoints")
  checkpoints = Checkpoints(folder)
  checkpoints.save(setup.state, {"data_hash": "x"})
  checkpoints.close()
  _, final, _ = run_steps(setup, BATCHES[2:])
  return folder, final


def resume(folder, shape):
  setup = make_step(sft, make_mesh(*shape))
  with jax.set_mesh(setup.mesh):
    checkpoints = Checkpoints(folder)
    setup.state = checkpoints.restore(abstract(setup.state))
    checkpoints.close()
  assert int(setup.state.step) == 2
  return run_steps(setup, BATCHES[2:])[1]


def test_resumed_run_is_bitwise_the_uninterrupted_one(trained):
  folder, final = trained
  jax.tree.map(np.testing.assert_array_equal, resume(folder, (2, 2, 2)), final)


@pytest.mark.parametrize(
  "shape",
  [(8, 1, 1), pytest.param((1, 1, 1), marks=pytest.mark.long)],
  ids=str,
)
def test_restores_on_another_mesh(trained, shape):
  folder, final = trained
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
    resume(folder, shape),
    final,
  )


def test_params_alone(trained):
  folder, _ = trained
  setup = make_step(sft, make_mesh())
  params = abstract(setup.state).params
  with jax.set_mesh(setup.mesh):
    checkpoints = Checkpoints(folder)
    restored = checkpoints.restore_params(params)
    assert checkpoints.meta()["data_hash"] == "x"
    checkpoints.close()
  assert jax.tree.structure(restored) == jax.tree.structure(params)


def test_other_shape_or_dtype_is_refused_by_name(trained):
  folder, _ = trained
  params = abstract(make_step(sft, make_mesh()).state).params
  checkpoints = Checkpoints(folder)
  bigger = {**params, "embed": jax.ShapeDtypeStruct((97, 32), jnp.float32)}
  with pytest.raises(ValueError, match="embed: saved .*96.*needed .*97"):
    checkpoints.restore_params(bigger)
  half = {**params, "embed": jax.ShapeDtypeStruct((96, 32), jnp.bfloat16)}
  with pytest.raises(ValueError, match="embed: .*float32.*bfloat16"):
    checkpoints.restore_params(half)
  without = {k: v for k, v in params.items() if k != "norm"}
  with pytest.raises(ValueError, match="norm/scale: saved .*needed nothing"):
    checkpoints.restore_params(without)
  checkpoints.close()


def test_empty_folder_is_one_error(tmp_path):
  checkpoints = Checkpoints(tmp_path / "none")
  assert checkpoints.latest() is None
  with pytest.raises(ValueError, match="no complete checkpoint"):
    checkpoints.restore_params({})
  checkpoints.close()


def test_final_checkpoint_has_params_only_and_keeps_one(tmp_path):
  setup = make_step(sft, make_mesh())
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(setup.state, {})
  later = setup.state.replace(step=jnp.int32(7))
  checkpoints.save(later, {}, final=True)
  assert checkpoints.latest() == 7
  assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["7"]
  assert not (tmp_path / "7" / "rest").exists()
  checkpoints.close()


def test_a_write_that_fails_says_why_without_the_layout_of_an_array():
  error = ValueError(
    'UNAVAILABLE: Error opening "/run/2/d": Failed to sync\n'
    """[tensorstore_spec='{"path":"embed/","chunks":[66,64]}'] """
    "[os_error_code='30']"
  )
  assert checkpoint._cause(error) == (
    'Read-only file system: UNAVAILABLE: Error opening "/run/2/d": Failed to '
    "sync"
  )
