"""The moving average of the params: formula, whose weights, exact resume."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from helpers import train_evaluated

from bct_jax.config import ConfigError, from_dict
from bct_jax.experiment.organism import (
  make_organism,
  organism_weights,
  provenance,
)
from bct_jax.experiment.plan import make_plan
from bct_jax.experiment.run_sizes import find_sizes
from bct_jax.experiment.run_state import TrainRun
from bct_jax.infra import signals
from bct_jax.runtime.weights import load_weights
from bct_jax.sizing.sizes import Work, device_bytes
from bct_jax.train.checkpoint import Checkpoints
from configs import tiny

DECAY, STEPS = 0.7, 5
# An adapter compiles two more steps.
LOW = pytest.param("low_average", marks=pytest.mark.slow)
LOW_PAIR = pytest.param("low", "low_average", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def plan(tiny_folder):
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(tiny_folder)
  values["mesh"] |= {"fsdp": 2, "tensor": 2}
  values["organism"]["kind"] = "native"
  values["train"]["steps"] = STEPS
  values["optim"]["lr"] = 1e-2
  low = {"rank": 4}
  values["arms"] = {
    "plain": {},
    "average": {"optim": {"ema_decay": DECAY}},
    "low": {"lora": low},
    "low_average": {"lora": low, "optim": {"ema_decay": DECAY}},
  }
  return make_plan(from_dict(values))


def trained(weights):
  tree = weights.params if weights.adapter is None else weights.adapter
  return jax.tree.map(np.asarray, tree)


def train(plan, name, folder, look=lambda step: None):
  """What was evaluated after each update, and what came out."""
  seen = {}

  def evaluate(step, weights):
    seen[step] = trained(weights)
    look(step)

  with jax.set_mesh(plan.runtime.mesh):
    arm, steps = plan.config.arms[name], tuple(range(STEPS + 1))
    out = train_evaluated(
      plan,
      TrainRun(name, folder, arm, plan.arms[name], steps),
      lambda: load_weights(plan.runtime, None),
      evaluate,
    )
  return seen, trained(out)


def saved(plan, name, folder, rest=False):
  """What the newest checkpoint holds."""
  arm, checkpoints = plan.config.arms[name], Checkpoints(folder / "checkpoints")
  state = plan.runtime.abstract_state(arm.optim, arm.lora)
  with jax.set_mesh(plan.runtime.mesh):
    read = checkpoints.restore if rest else checkpoints.restore_params
    out = read(state if rest else state.params)
    leaves = checkpoints.meta()["checksums"]
  checkpoints.close()
  return jax.tree.map(np.asarray, out), leaves


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def differ(a, b):
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return any((x != y).any() for x, y in pairs)


@pytest.fixture(scope="module")
def runs(plan, tmp_path_factory):
  folder = tmp_path_factory.mktemp("average")

  @functools.cache
  def run(name):
    return folder / name, *train(plan, name, folder / name)

  return run


@pytest.mark.long
@pytest.mark.parametrize(("plain", "name"), [("plain", "average"), LOW_PAIR])
def test_evals_see_the_debiased_average_of_the_params(runs, plain, name):
  """Training itself goes on as if there were none, up to rounding."""
  _, params, _ = runs(plain)
  _, averages, last = runs(name)
  same(averages[0], params[0])
  for t in range(1, STEPS + 1):
    shares = np.array([DECAY ** (t - i) for i in range(1, t + 1)])
    shares /= shares.sum()
    jax.tree.map(
      lambda found, *ps, shares=shares: np.testing.assert_allclose(
        found,
        sum(w * p.astype(np.float64) for w, p in zip(shares, ps, strict=True)),
        rtol=1e-5,
        atol=1e-7,
      ),
      averages[t],
      *(params[i] for i in range(1, t + 1)),
    )
  assert differ(averages[STEPS], params[STEPS])
  same(averages[STEPS], last)


@pytest.mark.long
def test_finished_weights_are_the_average(plan, runs):
  folder, averages, _ = runs("average")
  read, leaves = saved(plan, "average", folder)
  same(read, averages[STEPS])
  assert leaves.keys() == {"params"}
  # Evaluated again, as after a kill in the last eval.
  again, out = train(plan, "average", folder)
  same(again, {STEPS: averages[STEPS]})
  same(out, averages[STEPS])


def stop_in_eval(step):
  def look(now):
    if now == step:
      raise signals.Preempted("here")

  return look


@pytest.mark.long
@pytest.mark.parametrize("name", ["average", LOW])
def test_a_stopped_run_ends_bit_for_bit_alike(plan, runs, tmp_path, name):
  with pytest.raises(signals.Preempted):
    train(plan, name, tmp_path, stop_in_eval(3))
  state, leaves = saved(plan, name, tmp_path, rest=True)
  _, averages, last = runs(name)
  same(state.ema, averages[3])
  assert differ(state.ema, state.params)
  assert any(leaf.startswith("ema/") for leaf in leaves["rest"])
  rest, out = train(plan, name, tmp_path)
  assert sorted(rest) == [3, 4, 5]
  same(rest, {t: averages[t] for t in rest})
  same(out, last)


def test_without_one_a_checkpoint_has_what_it_had(plan, tmp_path):
  with pytest.raises(signals.Preempted):
    train(plan, "plain", tmp_path, stop_in_eval(1))
  _, leaves = saved(plan, "plain", tmp_path, rest=True)
  assert {leaf.split("/")[0] for leaf in leaves["rest"]} == {"opt_state", "rng"}


@pytest.mark.parametrize("name", ["average", "low_average"])
def test_it_is_float32_and_sharded_like_the_params(plan, name):
  arm, model = plan.config.arms[name], plan.config.model
  half = dataclasses.replace(model, param_dtype="bfloat16")
  config = dataclasses.replace(plan.config, model=half)
  runtime = dataclasses.replace(plan.runtime, config=config)
  state = runtime.abstract_state(arm.optim, arm.lora)

  def check(average, param):
    assert average.dtype == np.float32
    assert average.sharding == param.sharding

  jax.tree.map(check, state.ema, state.params)


def test_a_dry_run_counts_it(plan):
  def found(*names):
    arms = {name: plan.config.arms[name] for name in names}
    config = dataclasses.replace(plan.config, arms=arms)
    runtime = dataclasses.replace(plan.runtime, config=config)
    return find_sizes(runtime, Work(8, 64, 64, 1), 64)

  plain, average = found("plain"), found("average")
  state = plan.runtime.abstract_params
  assert plain.average == 0 and average.average == device_bytes(state)
  for total in ("training", "sampling"):
    more = getattr(average, total) - getattr(plain, total)
    assert more == device_bytes(state)


def test_hashes_of_organisms_without_one_stay(plan):
  plain, average = (plan.config.arms[n].optim for n in ("plain", "average"))
  assert "ema_decay" not in plain.facts()
  assert average.facts() == {**plain.facts(), "ema_decay": DECAY}


@pytest.mark.slow
def test_an_organism_is_its_average(plan, tmp_path):
  organism = dataclasses.replace(
    plan.config.organism,
    kind="sft",
    optim=plan.config.arms["average"].optim,
    train=dataclasses.replace(plan.config.organism.train, steps=2),
  )
  config = dataclasses.replace(plan.config, organism=organism, arms={})
  made = make_plan(config)
  facts = provenance(made)
  assert facts["optim"]["ema_decay"] == DECAY
  with jax.set_mesh(made.runtime.mesh):
    folder, _ = make_organism(made, tmp_path)
    weights = organism_weights(made, folder)
    plain = dataclasses.replace(organism, optim=plan.config.arms["plain"].optim)
    assert made.install is not None
    seen = {}
    train_evaluated(
      made,
      TrainRun("install", tmp_path / "plain", plain, made.install, (1, 2)),
      lambda: load_weights(made.runtime, None),
      lambda step, weights: seen.update({step: trained(weights)}),
    )
  jax.tree.map(
    lambda a, p, q: np.testing.assert_allclose(
      a, (DECAY * p + q) / (1 + DECAY), rtol=1e-5, atol=1e-7
    ),
    trained(weights),
    seen[1],
    seen[2],
  )


@pytest.mark.parametrize("value", [1.0, -0.1])
def test_decays_that_mean_nothing_are_refused(value):
  values = tiny.get_config().to_dict()
  values["optim"]["ema_decay"] = value
  with pytest.raises(ConfigError, match=r"ema_decay = .* below 1"):
    from_dict(values)
