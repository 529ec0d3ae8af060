"""Arms that are trained together: the numbers of each are those of it alone."""

import dataclasses
import functools
import operator
import os
import shutil
import signal
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from helpers import CONFIG, LORA, OPTIM, init_params, make_mesh, make_rows
from runs import ROOT

from bct_jax import config
from bct_jax.experiment import arms
from bct_jax.experiment.plan import make_plan
from bct_jax.experiment.run_state import TrainRun
from bct_jax.experiment.training import train_runs
from bct_jax.infra import exit_codes
from bct_jax.infra.files import read_json, read_lines
from bct_jax.mesh import put_batch
from bct_jax.models.decoder import Decoder
from bct_jax.models.lora import Weights
from bct_jax.runtime.programs import MeshModel
from bct_jax.runtime.weights import load_weights
from bct_jax.sweep import __main__ as sweeps
from bct_jax.sweep import run
from bct_jax.train.checkpoint import Checkpoints
from bct_jax.train.loop import FitConfig, Lane, fit
from bct_jax.train.params_view import Frozen
from bct_jax.train.together import update_in_one_program, update_in_turn
from bct_jax.types import TrainState
from configs import tiny

FILE = ROOT / "tests" / "support" / "sweep_together.py"
MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]
RATES = (1e-3, 1e-2, 3e-2)
CLIP = 1.9


# --- one update after another -------------------------------------------------


@functools.cache
def setup(shape):
  """A model on a mesh, the step of adapters, the base, a state of each arm."""
  raw = tiny.get_config().to_dict()
  decoder = Decoder(CONFIG, jnp.float32, "none")
  model = MeshModel(config.from_dict(raw), decoder, make_mesh(*shape))
  arm = dataclasses.replace(
    model.config.arms["low"],
    # Adam gives a gradient that is near zero, and so mostly rounding, a step
    # like any other unless eps is above it.
    optim=dataclasses.replace(OPTIM, clip_norm=CLIP, eps=1e-4),
    lora=LORA,
  )

  def of(seed):
    train = dataclasses.replace(arm.train, seed=seed)
    return dataclasses.replace(arm, train=train)

  with jax.set_mesh(model.mesh):
    params = init_params(model.model, model.mesh)
    seeds = range(len(RATES))
    states = [model.init_state(Weights(params), of(seed)) for seed in seeds]
  return model, model.step(arm), Frozen(params), states


def train(shape, update, hurt=None, stays=None):
  """Three updates of all arms: metrics, and the states after each.

  Args:
    shape: of the mesh.
    update: vmapped for all in one program; in_turn for each alone.
    hurt: an arm whose second batch gives a loss that is not finite.
    stays: one that has no part in the last update.
  """
  model, step, frozen, states = setup(shape)
  logs, after = [], []
  with jax.set_mesh(model.mesh):
    states = jax.tree.map(jnp.copy, states)
    for t in range(3):
      batches = []
      for i in range(len(states)):
        rows = make_rows(seed=10 * t + i)
        if i == hurt and t == 1:
          weights = np.where(rows.weights > 0, np.float32(np.inf), 0)
          rows = rows._replace(weights=weights)
        batches.append(put_batch(rows, model.mesh))
        if i == stays and t == 2:
          batches[i] = None
      states, found = update(step)(states, frozen, batches, RATES)
      logs.append([{k: float(v) for k, v in m.items()} for m in found])
      after.append(jax.tree.map(np.asarray, states))
  return logs, after


def assert_close(ours, theirs):
  def one(a, b):
    np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)

  jax.tree.map(one, ours, theirs)


SHARED = [pytest.mark.slow, pytest.mark.optimized]


# Unoptimized programs round so that Adam is 3e-5 apart on (2, 2, 2).
@pytest.mark.parametrize(
  "shape",
  [MESHES[0], *(pytest.param(s, marks=SHARED) for s in MESHES[1:])],
  ids=str,
)
def test_adapters_in_one_program_are_those_of_separate_ones(shape):
  logs, after = train(shape, update_in_one_program)
  want_logs, want = train(shape, update_in_turn)
  assert_close(after, want)
  for ours, theirs in zip(logs, want_logs, strict=True):
    for a, b in zip(ours, theirs, strict=True):
      assert a == pytest.approx(b, rel=1e-5)
  # Some updates are clipped and others are not, each by its own norm.
  norms = [x["grad_norm"] for line in want_logs for x in line]
  assert min(norms) < CLIP < max(norms), norms
  first, *others = (jax.tree.leaves(x.params) for x in want[-1])
  assert all(np.abs(first[0] - o[0]).max() > 1e-3 for o in others)


def test_an_arm_that_is_hurt_or_stays_changes_no_other():
  logs, after = train(MESHES[0], update_in_one_program)
  found, states = train(MESHES[0], update_in_one_program, hurt=1, stays=2)
  assert not np.isfinite(found[1][1]["loss"])
  assert not any(
    np.isfinite(x).all() for x in jax.tree.leaves(states[-1][1].params)
  )
  jax.tree.map(np.testing.assert_array_equal, states[-1][0], after[-1][0])
  assert found[2][0] == logs[2][0] and found[2][2] == {}
  jax.tree.map(np.testing.assert_array_equal, states[2][2], after[1][2])


# --- the loop -----------------------------------------------------------------


def test_lanes_end_fail_and_wait_each_by_itself():
  calls = []

  def lane(name, start, steps, bad=None):
    def step(t, state) -> Any:
      return (name, t == bad), [f"{name}{t}"]

    return Lane(
      TrainState(jnp.int32(start), {}, None, None),
      step,
      lambda t: 0.5,
      lambda t, state: None,
      lambda state: calls.append(f"save {name}{int(state.step)}"),
      lambda values: calls.append(f"log {name}{values['step']}"),
      FitConfig(steps, (steps,), 2),
    )

  def update(states, frozen, batches, lrs):
    # Finished lanes are left out, failed ones and those ahead are not.
    calls.append(f"update {' '.join(b[0] if b else '-' for b in batches)}")
    out = [
      (x.replace(step=x.step + 1), {"loss": np.nan if b[1] else 1.0})
      if b
      else (x, {})
      for x, b in zip(states, batches, strict=True)
    ]
    return [s for s, _ in out], [m for _, m in out]

  lanes = [lane("a", 2, 4), lane("b", 0, 3), lane("c", 0, 4, bad=1)]
  fit(lanes, None, update, lambda t, due: calls.append(f"eval {t} {len(due)}"))
  assert ",".join(calls) == (
    "update - b c,update - b c,log b1,log c1,log b2,save b2,"
    "update a b -,log a3,log b3,save b3,eval 3 1,"
    "update a -,log a4,save a4,eval 4 1"
  )
  assert [x.error is None for x in lanes] == [True, True, False]
  assert "update 2 of 4 (lr 0.5), examples ['c1']" in str(lanes[2].error)


# --- all weights --------------------------------------------------------------


@pytest.mark.long
def test_all_weights_in_turn_are_bit_for_bit_those_of_separate_runs(
  tiny_folder, tmp_path
):
  raw = tiny.get_config().to_dict()
  raw["model"]["path"] = str(tiny_folder)
  raw["organism"]["kind"] = "native"
  raw["arms"] = {
    "a": {"train": {"steps": 3}},
    "b": {"optim": {"lr": 1e-2}, "train": {"steps": 2, "seed": 1}},
  }
  plan = make_plan(config.from_dict(raw), make_mesh(2, 4, 1))

  def train_to_end(names, folder):
    runs = [
      TrainRun(name, folder / name, plan.config.arms[name], plan.arms[name])
      for name in names
    ]
    with jax.set_mesh(plan.runtime.mesh):
      found = train_runs(plan, runs, lambda: load_weights(plan.runtime, None))
    return {k: jax.tree.map(np.asarray, w.params) for k, w in found.items()}

  together = train_to_end("ab", tmp_path / "together")
  alone = [train_to_end(name, tmp_path / "alone") for name in "ab"]
  jax.tree.map(np.testing.assert_array_equal, together, alone[0] | alone[1])
  differ = jax.tree.map(np.array_equal, together["a"], together["b"])
  assert not all(jax.tree.leaves(differ))


# --- whole sweeps -------------------------------------------------------------


@pytest.fixture(scope="module")
def planned():
  """One plan for all sweeps here, so that they share what is compiled."""
  made = sweeps._read(["s", f"--sweep={FILE}", "--dry_run"])[1]
  plan = run.plan_of(made)
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(run, "plan_of", lambda group: plan)
    yield


def sweep(root, *flags):
  """Runs a sweep and returns its exit code."""
  flags = [f"--sweep={FILE}", f"--workdir={root}", *flags]
  return sweeps.main(["sweep", *flags])


@pytest.fixture(scope="module")
def alone(planned, tmp_path_factory):
  """Root of a sweep whose cells were run one after another."""
  root = tmp_path_factory.mktemp("alone") / "s"
  assert sweep(root) == exit_codes.FAILED  # one diverges
  return root


@pytest.fixture(scope="module", params=["--novmap", "--vmap"])
def together(request, alone, tmp_path_factory):
  """A form of training together, and the root of a sweep by it."""
  root = beside(alone, tmp_path_factory.mktemp("together"))
  assert sweep(root, "--together=4", request.param) == exit_codes.FAILED
  return request.param, root


def beside(alone, root):
  """The root of a new sweep with the organism of another."""
  shutil.copytree(alone / "organisms", root / "organisms")
  return root


def files(folder):
  names = (p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
  return named(str(n) for n in names)


def named(names):
  """Names of files but for those of checkpoints, some of which are random."""
  return sorted(n for n in names if "checkpoints" not in n)


def read(path):
  """What a file of a run says, without times."""
  if path.name == "files.jsonl":
    return None  # all writes, with hashes, also of files that have times
  if path.suffix == ".jsonl":
    lines = read_lines(path)
    return [{k: v for k, v in x.items() if k != "seconds"} for x in lines]
  if path.name == "error.json":
    return read_json(path)["error"].split("; last checkpoint")[0]
  if path.suffix != ".json":
    return path.read_text() if path.name == "mask_audit.txt" else None
  found = read_json(path)
  if "files" in found:  # done.json, with hashes like those
    found |= {k: named(found[k]) for k in ("files", "written")}
  for record in (found, *found.get("arms", ())):
    record.pop("seconds", None)
    record.pop("date", None)  # env.json: when the cell was begun
  return found


def trained(cell):
  """The arrays of a cell's newest checkpoint."""
  (folder,) = (cell / "arms").iterdir()
  step = Checkpoints(folder / "checkpoints").latest()
  return step, ocp.StandardCheckpointer().restore(
    folder.absolute() / "checkpoints" / str(step) / "params"
  )


def close(a, b):
  """Equal, but for numbers, which differ by rounding at most."""
  if isinstance(a, dict):
    return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
  if isinstance(a, list):
    return len(a) == len(b) and all(map(close, a, b))
  return a == (
    pytest.approx(b, abs=1e-5, rel=1e-5) if isinstance(a, float) else b
  )


def assert_same_sweep(ours, theirs, exact=False):
  same = operator.eq if exact else close
  for cell in sorted((theirs / "cells").iterdir()):
    other = ours / "cells" / cell.name
    assert files(other) == files(cell)
    for name in files(cell):
      assert same(read(other / name), read(cell / name)), f"{cell.name}/{name}"
    if not (cell / "done.json").exists():
      continue
    (step, params), (want_step, want) = trained(other), trained(cell)
    assert step == want_step
    if exact:
      jax.tree.map(np.testing.assert_array_equal, params, want)
    else:
      assert_close(params, want)


@pytest.mark.slow
@pytest.mark.optimized
def test_cells_together_are_those_one_after_another(alone, together):
  assert_same_sweep(together[1], alone)
  failed = alone / "cells" / "lr_1e_36-seed_2" / "error.json"
  assert "not finite at update 2" in read_json(failed)["error"]


def stopped(monkeypatch, owner, name, at, stop):
  """Has the call number `at` of a method end otherwise."""
  whole, calls = getattr(owner, name), []

  def counted(*args, **more):
    calls.append(name)
    if len(calls) == at:
      stop()
    return whole(*args, **more)

  monkeypatch.setattr(owner, name, counted)


def killed():
  raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.optimized
def test_a_group_goes_on_from_anywhere_to_the_same_numbers(
  alone, together, tmp_path, monkeypatch
):
  form, whole = together
  root = beside(alone, tmp_path)
  stop = functools.partial(os.kill, os.getpid(), signal.SIGTERM)
  for owner, name, at, how in (
    (Checkpoints, "save", 2, killed),  # one arm is at 1, the others at 0
    (Checkpoints, "save", 1, stop),  # all are saved at 3
    (Checkpoints, "save", 2, killed),  # one of two is saved at 4, its last
    (arms._Arm, "save_eval", 2, killed),  # one of two evals at 4 is saved
  ):
    with monkeypatch.context() as m:
      stopped(m, owner, name, at, how)
      if how is stop:
        assert sweep(root, "--together=4", form) == exit_codes.PREEMPTED
      else:
        with pytest.raises(KeyboardInterrupt):
          sweep(root, "--together=4", form)
  assert sweep(root, "--together=4", form) == exit_codes.FAILED
  assert_same_sweep(root, whole, exact=True)
