"""Rollouts as training batches: learning, exact resume, whose weights."""

import functools
import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import make_mesh

from bct_jax.config import ConfigError, from_dict
from bct_jax.experiment import rl
from bct_jax.experiment.plan import make_plan
from bct_jax.experiment.training import train_run
from bct_jax.infra import files, signals
from bct_jax.objectives import policy_of
from bct_jax.runtime.weights import load_weights
from bct_jax.sample import resume
from bct_jax.train.step import NumericalError
from bct_jax.types import TrainState
from configs import tiny

pytestmark = pytest.mark.long

# The random model can learn to end its answers, and after how many words.
LENGTH = {"reward": "length", "length_target": 2}
RLOO = {"kl_coef": 0.1, "kl_estimator": "k1_in_reward"}
GRPO = {
  "advantage": "group_normalized",
  "normalizer": "sequence_mean",
  "updates_per_batch": 3,
  "clip": 0.2,
  "kl_coef": 0.1,
}


def arm(options, **groups):
  train = groups.pop("train", {})
  return {"train": {**train, "options": {**LENGTH, **options}}, **groups}


def values(folder, **arms):
  c = tiny.get_config()
  c.model.path = str(folder)
  c.organism.kind = "native"
  c.setting.name = "cot_suppression"  # references of one word
  c.train.objective, c.train.source = "policy_gradient", "on_policy"
  c.train.decoration = "plain"
  c.train.batch_size, c.train.num_examples, c.train.steps = 8, 8, 5
  c.optim.lr = 1e-2
  c.sampling.max_new_tokens = 24
  c.sampling.stop = ("a", "e", "i", "o", "u")
  return {**c.to_dict(), "arms": arms}


@pytest.fixture(scope="module")
def plan(tiny_folder):
  arms = {
    "rloo": arm(RLOO),
    "grpo": arm(GRPO, lora={"rank": 4}, train={"accum": 2, "pack": False}),
    "strict": arm({"max_logprob_difference": 1e-9}),
  }
  config = from_dict(values(tiny_folder, **arms))
  return make_plan(config, make_mesh(2, 2, 2))


def train(plan, name, folder):
  """Trains an arm of a plan in a folder, or goes on with it."""
  with jax.set_mesh(plan.runtime.mesh):
    found = train_run(
      plan,
      name,
      folder,
      plan.config.arms[name],
      plan.arms[name],
      lambda: load_weights(plan.runtime, None),
    )
    return jax.tree.map(np.asarray, found.adapter or found.params)


@pytest.fixture(scope="module", params=["rloo", "grpo"])
def whole(request, plan, tmp_path_factory):
  """An arm that nothing happened to: its name, folder and weights."""
  folder = tmp_path_factory.mktemp(request.param)
  return request.param, folder, train(plan, request.param, folder)


def records(folder):
  """All that a run writes, without its times."""
  lines = files.read_lines(folder / "metrics.jsonl")
  drawn = sorted((folder / "train_rollouts").iterdir())
  return (
    [{k: v for k, v in x.items() if k != "seconds"} for x in lines],
    {p.name: p.read_text() for p in drawn},
    (folder / "mask_audit.txt").read_text(),
  )


def test_rollouts_are_of_the_weights_of_their_step(whole, plan):
  """Sampler and trainer agree on tokens drawn from weights that have moved."""
  name, folder, _ = whole
  lines, drawn, _ = records(folder)
  every = policy_of(plan.config.arms[name]).updates_per_batch
  assert set(drawn) == {f"step_{s}.jsonl" for s in range(0, 5, every)}
  assert [x["step"] for x in lines] == [1, 2, 3, 4, 5]
  assert all(0 <= x["logprob_difference"] < 1e-4 for x in lines)
  for line in lines:
    first_use = (line["step"] - 1) % every == 0
    assert (line["ratio"] == pytest.approx(1, abs=1e-4)) == first_use
  first, *_, last = [
    [json.loads(x) for x in text.splitlines()] for text in drawn.values()
  ]
  for row in first:  # the organism is what is trained, before any update
    np.testing.assert_allclose(row["logprobs"], row["reference_logprobs"])
  moved = [sum(r["logprobs"]) - sum(r["reference_logprobs"]) for r in last]
  assert max(map(abs, moved)) > 0.05
  assert lines[0]["completion_kl"] == pytest.approx(0, abs=1e-4)
  assert len({r["reward"] for r in first}) > 1, "nothing to learn from"
  assert any(x["grad_norm"] > 0 for x in lines)


class Killed(Exception):
  pass


def test_killed_and_resumed_is_bit_for_bit(whole, plan, tmp_path, monkeypatch):
  """Lives end after so many lines of rollouts or metrics, each a little later:
  while sampling, between updates on the same rollouts, around checkpoints."""
  name, folder, weights = whole
  append, lives, left = files.append_line, 0, 0

  def mortal(path, row, sync=True):
    nonlocal left
    if left == 0:
      raise Killed
    left -= 1
    append(path, row, sync)

  monkeypatch.setattr(files, "append_line", mortal)
  while True:
    lives, left = lives + 1, 5 + 4 * lives
    assert lives < 20
    try:
      found = train(plan, name, tmp_path)
      break
    except Killed:
      pass
  assert lives > 2
  jax.tree.map(np.testing.assert_array_equal, weights, found)
  assert records(tmp_path) == records(folder)


def test_a_signal_while_sampling_saves_the_state(
  whole, plan, tmp_path, monkeypatch
):
  name, folder, weights = whole
  looks = iter(range(100))
  asked = types.SimpleNamespace(
    stop_requested=lambda: next(looks) == 10, Preempted=signals.Preempted
  )
  monkeypatch.setattr(resume, "signals", asked)
  with pytest.raises(signals.Preempted):
    train(plan, name, tmp_path)
  # Eight rollouts were drawn, and three of the second batch.
  saved = policy_of(plan.config.arms[name]).updates_per_batch
  assert (tmp_path / f"checkpoints/{saved}").is_dir()
  partial = tmp_path / f"train_rollouts/step_{saved}.partial.jsonl"
  assert len(partial.read_text().splitlines()) == 1 + 3
  jax.tree.map(
    np.testing.assert_array_equal, weights, train(plan, name, tmp_path)
  )
  assert records(tmp_path) == records(folder)


def feed(plan, name, folder):
  own = plan.config.arms[name]
  return rl.RolloutFeed(plan, own, Path(folder), plan.arms[name], None, None)


def test_another_step_than_that_of_the_state_is_refused(plan, tmp_path):
  state = TrainState(np.int32(3), None, None, None)
  with pytest.raises(ValueError, match="step 4 of a state at step 3"):
    feed(plan, "rloo", tmp_path).next_batch(4, state)


def test_lost_rollouts_are_an_error(plan, tmp_path):
  state = TrainState(np.int32(4), None, None, None)
  with pytest.raises(ValueError, match=r"step_3\.jsonl does not hold the 8"):
    feed(plan, "grpo", tmp_path).next_batch(4, state)


def test_rollouts_of_steps_to_come_are_dropped(plan, tmp_path):
  folder = tmp_path / "train_rollouts"
  folder.mkdir()
  names = [f"step_{s}{p}.jsonl" for s in (0, 3, 12) for p in ("", ".partial")]
  for name in names:
    (folder / name).touch()
  feed(plan, "grpo", tmp_path).begin(3)
  assert {p.name for p in folder.iterdir()} == set(names[:4])


def test_a_sampler_that_differs_stops_the_run(plan, tmp_path):
  with pytest.raises(
    NumericalError, match=r"strict: .* max_logprob_difference = 1e-9"
  ):
    train(plan, "strict", tmp_path)


def test_batches_of_prompts_share_programs(plan, whole, tmp_path):
  """Also with other prompts than before; and draw what each would alone."""
  runtime = plan.runtime
  all_prompts = feed(plan, "rloo", tmp_path)._prompts
  sets = [[p for p in all_prompts[i : i + 2] for _ in range(4)] for i in (0, 6)]
  sample = functools.partial(
    runtime.make_policy_sampler(0), row_ids=range(8), seed=0
  )
  compiled = []
  with jax.set_mesh(runtime.mesh):
    params = runtime.decode_params(load_weights(runtime, None))
    jax.monitoring.register_event_duration_secs_listener(
      lambda name, seconds, **_: compiled.append(name)
    )
    shared = [sample(params, p, among=all_prompts) for p in sets]
    assert not [n for n in compiled if "backend_compile" in n]
    alone = sample(params, sets[1])
  for a, b in zip(shared[1], alone, strict=True):
    assert a.tokens == b.tokens
    np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-4)


@pytest.mark.slow
def test_it_learns(tiny_folder, tmp_path):
  # One word more than the reference earns 1, all else nothing.
  long = arm(
    {"group_size": 8, "length_target": 1}, train={"steps": 40, "batch_size": 32}
  )
  c = values(tiny_folder, a=long)
  c["train"]["num_examples"] = 32
  plan = make_plan(from_dict(c), make_mesh(8))
  train(plan, "a", tmp_path)
  rewards = [x["reward"] for x in files.read_lines(tmp_path / "metrics.jsonl")]
  assert np.mean(rewards[-5:]) >= np.mean(rewards[:5]) + 0.4


# --- the config ---------------------------------------------------------------


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"reward": "agred"}, r"a\.train\.options\.reward = 'agred'.*'agreed'"),
    ({"advantage": "rloo"}, r"advantage = 'rloo': must be one of"),
    ({"normalizer": "tokens"}, r"normalizer = .*did you mean 'token'"),
    ({"kl_estimator": "k1"}, r"kl_estimator = 'k1': must be one of"),
    ({"group_size": 1}, r"group_size = 1: must be 2 or more"),
    ({"group_size": 0, "advantage": "none"}, r"group_size = 0: must be 1 or"),
    ({"group_size": 3}, r"options\.group_size = 3: must divide .* = 8"),
    ({"updates_per_batch": 2}, r"clip = 0\.0: must be above 0"),
    ({"updates_per_batch": 0}, r"updates_per_batch = 0: must be positive"),
    ({"clip": 1.0}, r"clip = 1\.0: must be from 0 \(off\) to below 1"),
    ({"kl_coef": -0.1}, r"kl_coef = -0\.1: must be 0 \(off\) or above"),
    ({"max_logprob_difference": 0.0}, r"max_logprob_difference = 0\.0"),
    ({"length_target": 0}, r"length_target = 0: must be positive"),
    ({"clipp": 0.1}, r"a\.train\.options\.clipp: unknown.*'clip'"),
  ],
)
def test_a_wrong_option_is_named(options, message, tiny_folder):
  config = from_dict(values(tiny_folder, a={"train": {"options": options}}))
  with pytest.raises(ConfigError, match=message):
    make_plan(config, make_mesh())


@pytest.mark.parametrize(
  ("train", "message"),
  [
    ({"source": "template"}, r"arms\.a\.train\.source = 'template'"),
    ({"prompt": "recontextualised"}, r"train\.prompt = 'recontextualised'"),
    ({"normalizer": "example"}, r"a\.train\.normalizer = .*'example'"),
  ],
)
def test_a_wrong_combination_is_named(train, message, tiny_folder):
  with pytest.raises(ConfigError, match=message):
    make_plan(from_dict(values(tiny_folder, a={"train": train})), make_mesh())


def test_an_organism_has_no_reward(tiny_folder):
  c = values(tiny_folder)
  c["organism"]["kind"] = "sft"
  c["organism"]["train"] |= {
    "objective": "policy_gradient",
    "source": "on_policy",
  }
  with pytest.raises(ConfigError, match=r"organism\.train\.objective"):
    make_plan(from_dict(c), make_mesh())


def test_completions_must_fit(tiny_folder):
  c = values(tiny_folder, a={}) | {"max_length": 40}
  with pytest.raises(ValueError, match=r"arms\.a: .* max_length is 40"):
    make_plan(from_dict(c), make_mesh())
