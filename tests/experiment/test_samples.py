"""eval.samples: answers at temperature 1 beside those that sampling says."""

import base64
import dataclasses
import gzip

import jax
import pytest
from experiments import config, lines, shared_runtimes

import bct_jax
from bct_jax.config import ConfigError, from_dict
from bct_jax.evals.evaluate import mark_decorated, measure_rows
from bct_jax.evals.summary import clustered_interval
from bct_jax.experiment import eval_rollouts, run
from bct_jax.experiment.eval_rollouts import partials, sample_arms, sample_rows
from bct_jax.experiment.plan import make_plan
from bct_jax.infra import files, signals
from bct_jax.modes import rescore
from bct_jax.modes.dry_run_lines import data_lines
from bct_jax.report.browser import make_browser
from bct_jax.report.read.load import load_run
from bct_jax.runtime.weights import load_weights
from bct_jax.sample import resume
from bct_jax.settings.decorations import DECORATIONS
from configs import tiny


@pytest.fixture(scope="module", autouse=True)
def shared():
  with shared_runtimes():
    yield


def plan(folder, samples, num_eval=3):
  base = config(folder, {"a": {}})
  part = dataclasses.replace(base.eval, samples=samples, num_eval=num_eval)
  return make_plan(dataclasses.replace(base, eval=part))


def sampled(rows):
  return [r for r in rows if r["split"] == "sampled"]


@pytest.fixture(scope="module")
def drawn(tiny_folder):
  """A plan with two samples, weights, and the rows of its eval."""
  made = plan(tiny_folder, 2)
  with jax.set_mesh(made.runtime.mesh):
    weights = load_weights(made.runtime, None)
    return made, weights, sample_rows(made, weights, "eval")


@pytest.mark.long
def test_samples_stand_behind_the_rows_of_prompts(drawn):
  made, _, rows = drawn
  count = len(made.prompts)
  assert [r["sample"] for r in rows[:count]] == [0] * count
  asked = [r["id"] for r in rows[:count] if r["split"] == "eval"]
  assert rows[count:] == sampled(rows)
  assert [(r["sample"], r["id"]) for r in sampled(rows)] == [
    (k, name) for k in (1, 2) for name in asked
  ]
  # They are draws: of one prompt no two alike, none the greedy one.
  for name in asked:
    answers = [tuple(r["tokens"]) for r in rows if r["id"] == name]
    assert len(set(answers)) == 3


def test_rates_are_of_samples_and_intervals_of_prompts(drawn):
  _, _, rows = drawn
  rows = mark_decorated(rows, DECORATIONS["plain"])
  for row in sampled(rows):  # one prompt of three, in both of its samples
    row["label"] = "initial" if row["id"] == rows[0]["id"] else "alternate"
  record = measure_rows(rows, 4).to_json()
  assert (record["n"], record["sampled_n"]) == (3, 6)
  assert record["initial"] == 0 and record["alternate_sampled"] == 4 / 6
  wanted = clustered_interval([[1, 1], [0, 0], [0, 0]])
  found = record["initial_sampled"], *record["initial_sampled_ci"]
  assert found == pytest.approx(wanted)
  for row in sampled(rows):  # all prompts are of one cue entity
    row["cue"] = "wren"
  low, high = measure_rows(rows, 4).to_json()["initial_sampled_ci"]
  assert high - low > wanted[2] - wanted[1] + 0.01
  plain = measure_rows([r for r in rows if not r["sample"]], 4).to_json()
  assert not [key for key in plain if "sampled" in key]


@pytest.mark.long
def test_samples_of_two_arms_are_those_of_each_alone(drawn):
  made, weights, alone = drawn
  with jax.set_mesh(made.runtime.mesh):
    both = sample_arms(made, [weights, weights], "eval")
  for rows in both:
    assert [r["tokens"] for r in rows] == [r["tokens"] for r in alone]


def test_a_stop_while_samples_are_drawn_changes_nothing(
  drawn, tmp_path, monkeypatch
):
  made, weights, whole = drawn
  partial = tmp_path / "x.partial.jsonl"
  with jax.set_mesh(made.runtime.mesh):
    left = len(made.prompts) + 2  # completions until the stop

    def stop_requested():
      nonlocal left
      left -= 1
      return left < 0

    monkeypatch.setattr(resume.signals, "stop_requested", stop_requested)
    with pytest.raises(signals.Preempted):
      sample_rows(made, weights, "eval", partial)
    monkeypatch.undo()
    files = partials(partial)
    assert [len(lines(f)) for f in files] == [len(made.prompts) + 1, 4]
    calls = []
    complete = eval_rollouts.sample_to_end

    def counted(*args, **more):
      before = len(lines(args[4]))
      out = complete(*args, **more)
      calls.append((before, len(lines(args[4]))))
      return out

    monkeypatch.setattr(eval_rollouts, "sample_to_end", counted)
    rows = sample_rows(made, weights, "eval", partial)
  assert calls == [(len(made.prompts) + 1,) * 2, (4, 7)]
  assert rows == whole


def test_a_dry_run_counts_them(tiny_folder):
  (line,) = [x for x in data_lines(plan(tiny_folder, 2)) if "each eval" in x]
  assert "7 prompts" in line and line.endswith(
    "and 2 samples of each of the 3 eval prompts, 6 completions more "
    "(eval.samples)"
  )


def test_a_number_that_cannot_be(tiny_folder):
  with pytest.raises(ConfigError, match="eval.samples = -1: must be 0"):
    config(tiny_folder, {"a": {}}, eval__samples=-1)


def test_evals_without_samples_keep_their_hash(tiny_folder):
  evals = config(tiny_folder, {"a": {}}).eval
  assert "samples" not in evals.facts()
  more = dataclasses.replace(evals, samples=2)
  assert more.facts() == {**evals.facts(), "samples": 2}


@pytest.mark.long
def test_more_prompts_or_samples_leave_the_others(drawn, tiny_folder):
  """Its plans change the config that all plans share: keep it behind."""
  made, weights, rows = drawn
  with jax.set_mesh(made.runtime.mesh):
    greedy = sample_rows(plan(tiny_folder, 0), weights, "eval")
    more = sample_rows(plan(tiny_folder, 3, num_eval=4), weights, "eval")
  assert [r["text"] for r in greedy] == [
    r["text"] for r in rows if not r["sample"]
  ]
  known = {(r["sample"], r["id"]): r["tokens"] for r in sampled(more)}
  assert all(known[r["sample"], r["id"]] == r["tokens"] for r in sampled(rows))


@pytest.mark.long
def test_a_run_has_rates_of_samples(tiny_folder, tmp_path):
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(tiny_folder)
  values["eval"] |= {"num_eval": 3, "num_heldout": 2, "num_probe": 2}
  values["eval"] |= {"samples": 3, "steps": ()}
  values["organism"]["train"]["steps"] = values["train"]["steps"] = 1
  values["sampling"]["max_new_tokens"] = 4
  values["arms"] = {"a": {}}
  files.write_json(
    tmp_path / "config.json", {"config": values, "overrides": {}}
  )
  files.write_json(tmp_path / "env.json", {})
  result = run.run(make_plan(from_dict(values)), tmp_path)
  (arm,) = result["arms"]
  for point in arm["curve"]:
    rows = lines(tmp_path / f"arms/a/rollouts/step_{point['step']}.jsonl")
    assert point["n"] == 3 and point["sampled_n"] == 9
    of_prompts = {}
    for row in sampled(rows):
      key = row["cue"] or row["id"]
      of_prompts.setdefault(key, []).append(float(row["label"] == "other"))
    rate, low, high = clustered_interval([*of_prompts.values()])
    assert point["other_sampled"] == pytest.approx(rate)
    assert point["other_sampled_ci"] == pytest.approx([low, high])
  assert result["organism"]["gate"]["sampled_n"] == 9
  assert not list(tmp_path.rglob("*.partial.jsonl"))
  # What reads a run takes them as they are.
  told = bct_jax.load_results(tmp_path)
  last = arm["curve"][-1]
  assert told[-1]["other_sampled"] == last["other_sampled"]
  assert told[-1]["other_sampled_low"] == last["other_sampled_ci"][0]
  packed = make_browser([load_run(tmp_path)]).data
  assert b"eval/0 sample 3" in gzip.decompress(base64.b64decode(packed))
  for record in rescore.rescore(tmp_path):
    assert record.get("changed", []) == []
