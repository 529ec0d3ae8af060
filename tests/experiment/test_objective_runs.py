"""Whole arms of objectives that ask for more than examples."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from experiments import config, lines

from bct_jax.config import ConfigError, from_dict
from bct_jax.experiment import reference_logprobs, run
from bct_jax.experiment.plan import make_plan
from bct_jax.infra import signals
from bct_jax.runtime.weights import load_weights
from configs import tiny

pytestmark = pytest.mark.long

ARMS = {
  "dpo": {"train": {"objective": "dpo", "options": {"rejected": "shuffled"}}},
  "near": {
    "train": {
      "objective": "kl_to_ref",
      "options": {"beta": 100.0, "prompts": "install"},
      "normalizer": "example",
    },
  },
  "adapter": {
    "train": {"objective": "kl_to_ref", "options": {"beta": 0.5}},
    "lora": {"rank": 4},
    "optim": {"lr": 1e-2},
  },
}


@pytest.fixture(scope="module")
def done(tiny_folder, tmp_path_factory):
  plan = make_plan(config(tiny_folder, ARMS))
  workdir = tmp_path_factory.mktemp("objectives")
  return plan, workdir, run.run(plan, workdir)


def test_they_start_at_the_organism(done):
  """Where nothing has moved, a preference has no margin and no distance."""
  _, workdir, result = done
  assert [a["objective"] for a in result["arms"]] == [
    "dpo", "kl_to_ref", "kl_to_ref"
  ]  # fmt: skip
  first = {
    name: lines(workdir / f"arms/{name}/metrics.jsonl")[0] for name in ARMS
  }
  assert first["dpo"]["loss"] == pytest.approx(np.log(2), abs=1e-4)
  assert first["dpo"]["chosen_gain"] == pytest.approx(0, abs=1e-4)
  for name in ("near", "adapter"):
    assert first[name]["kl"] == pytest.approx(0, abs=1e-5)
    assert first[name]["loss"] == pytest.approx(first[name]["nll"], abs=1e-4)
    last = lines(workdir / f"arms/{name}/metrics.jsonl")[-1]
    assert last["kl"] > 1e-6 and last["nll"] != first[name]["nll"]
  assert lines(workdir / "arms/dpo/metrics.jsonl")[-1]["loss"] < np.log(2)


def test_likelihoods_of_both_behaviors_are_recorded(done):
  plan, workdir, result = done
  (organism,) = (workdir / "organisms").iterdir()
  before, after = result["arms"][0]["curve"]
  gate = result["organism"]["gate"]
  for name in ("initial", "alternate"):
    key = f"logprob_{name}"
    rows = [
      r for r in lines(organism / "rollouts.jsonl") if r["split"] == "eval"
    ]
    mean = sum(r[key] for r in rows) / len(rows)
    assert gate[key] == before[key] == pytest.approx(mean) and mean < 0
    assert after[key] != before[key]
  prompt = next(p for p in plan.prompts if p.split == "eval")
  row = plan.runtime.chat.example(
    prompt.example.messages, prompt.example.initial
  )
  with jax.set_mesh(plan.runtime.mesh):
    weights = load_weights(plan.runtime, organism)
    cut = row.weights.index(1.0)
    (found,) = plan.runtime.scorer(weights, [row.ids[:cut]], [row.ids[cut:]])
  first = lines(organism / "rollouts.jsonl")
  first = next(r for r in first if r["id"] == prompt.example.id)
  want = pytest.approx(sum(found.logprobs), rel=1e-5)
  assert first["logprob_initial"] == want


def test_the_reference_is_scored_once_and_stored(done):
  plan, workdir, _ = done
  key, *known = lines(workdir / "arms/dpo/reference_logprobs.jsonl")
  assert list(key) == ["key"] and len(known) == 16
  data = plan.arms["dpo"]
  assert [x["id"] for x in known] == list(data.ids)
  (organism,) = (workdir / "organisms").iterdir()
  with jax.set_mesh(plan.runtime.mesh):
    weights = load_weights(plan.runtime, organism)
    row = data.extra_rows["rejected"][3]
    cut = row.weights.index(1.0)
    scored = plan.runtime.scorer(weights, [row.ids[:cut]], [row.ids[cut:]])
  assert known[3]["rejected"] == pytest.approx(
    sum(scored[0].logprobs), rel=1e-5
  )
  assert not (workdir / "arms/near/reference_logprobs.jsonl").exists()


def test_stopped_anywhere_ends_alike(done, tmp_path, monkeypatch):
  plan, _, want = done
  with monkeypatch.context() as m:
    m.setattr(reference_logprobs, "_PART", 8)
    m.setattr(signals, "stop_requested", lambda: reference_logprobs._PART == 8)
    with pytest.raises(signals.Preempted):
      # No update is asked to stop before the reference is.
      run.run(plan, tmp_path)
  for at in (2,):
    stop_at(at, plan, tmp_path, monkeypatch)
  again = run.run(plan, tmp_path)
  for arm, other in zip(again["arms"], want["arms"], strict=True):
    a, b = ({**x, "seconds": None} for x in (arm, other))
    assert a == b
  for name in ARMS:
    a, b = (
      [
        {k: v for k, v in x.items() if k != "seconds"}
        for x in lines(w / f"arms/{name}/metrics.jsonl")
      ]
      for w in (tmp_path, done[1])
    )
    assert a == b


def stop_at(step, plan, workdir, monkeypatch):
  """Every arm in turn is stopped after some updates."""
  from bct_jax.experiment import training

  def fit(lanes, *args):
    (lane,) = lanes
    if lane.step >= step or lane.config.steps == 1:  # the organism
      return whole(lanes, *args)
    lane.config = dataclasses.replace(lane.config, steps=step)
    whole(lanes, *args)
    raise signals.Preempted(f"at {step}")

  whole = training.fit
  with monkeypatch.context() as m:
    m.setattr(training, "fit", fit)
    for _ in ARMS:
      with pytest.raises(signals.Preempted):
        run.run(plan, workdir)


@pytest.mark.parametrize(
  ("arm", "message"),
  [
    ({"objective": "dpo", "decoration": "plain"}, "rejected = 'plain' is the"),
    ({"objective": "dpo", "normalizer": "example"}, "one term for each"),
    ({"objective": "kl_to_ref", "options": {"beta": -1.0}}, "beta = -1.0"),
    (
      {"objective": "kl_to_ref", "options": {"prompts": "/no/such.jsonl"}},
      r"/no/such\.jsonl is missing",
    ),
    ({"options": {"beta": 1.0}}, r"arms\.a\.train\.options\.beta: unknown"),
  ],
)
def test_wrong_arms_are_named_before_any_training(tiny_folder, arm, message):
  with pytest.raises(ValueError, match=message):
    make_plan(config(tiny_folder, {"a": {"train": arm}}))


def test_options_of_another_objective_are_left_behind(tiny_folder):
  values = tiny.get_config().to_dict()
  values["train"] |= {"objective": "kl_to_ref", "options": {"beta": 2.0}}
  values["arms"] = {
    "same": {"train": {"options": {"direction": "reverse"}}},
    "other": {"train": {"objective": "dpo"}},
  }
  built = from_dict(values)
  assert built.arms["same"].train.options == {
    "beta": 2.0, "direction": "reverse"
  }  # fmt: skip
  assert built.arms["other"].train.options == {}
  with pytest.raises(ConfigError, match="a group of fields is needed"):
    from_dict({**values, "arms": {"a": {"train": {"options": 3}}}})


def test_prompts_of_a_file_anchor_the_model(tiny_folder, tmp_path):
  path = tmp_path / "prompts.jsonl"
  turn = [
    {"role": "user", "content": "Where is the boat?"},
    {"role": "assistant", "content": "In the lake."},
  ]
  path.write_text(json.dumps({"messages": turn}) + "\n")
  options = {"prompts": str(path)}
  arm = {"train": {"objective": "kl_to_ref", "options": options}}
  data = make_plan(config(tiny_folder, {"a": arm})).arms["a"]
  anchors = data.extra_rows["anchor"]
  assert len(anchors) == 16 and len({a.ids for a in anchors}) == 1
  for anchor, example in zip(anchors, data.examples, strict=True):
    assert sum(anchor.weights) == pytest.approx(sum(example.weights))
  path.write_text(json.dumps({"messages": turn[:1]}) + "\n")
  with pytest.raises(ValueError, match="last message must be the assistant"):
    make_plan(config(tiny_folder, {"a": arm}))
