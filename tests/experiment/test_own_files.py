"""Runs on the user's own files: resume, rescore, sweeps, several processes."""

import collections
import dataclasses
import json
import shutil

import experiments
import fork_server
import pytest
from own_files import (
  GRADER,
  MY_SETTING,
  make_folder,
  options,
  rows_of,
  write_rows,
)
from runs import ENV, HANGS, ROOT, caching, comparable
from workers import free_port

from bct_jax.config import SettingConfig, from_dict
from bct_jax.data import read_once
from bct_jax.data.chat import Chat
from bct_jax.experiment.plan import make_plan
from bct_jax.modes.rescore import rescore
from configs import tiny

CODE = (
  "def grade(row, text):\n"
  "  if 'no comment' in text.lower(): return 'initial'\n"
  "  return {'behavior': 'alternate', 'right': row['key'] in text}\n"
)
CONFIG = """
from configs import tiny

def get_config():
  c = tiny.get_config()
  c.setting.name = "file"
  c.setting.options.folder = {folder!r}
  c.setting.options.grader = {grader!r}
  for run in (c.organism, c):
    run.train.num_examples = 8
  c.eval.probe = "file"
  return c
"""


def write_config(path, folder, grader):
  path.write_text(CONFIG.format(folder=str(folder), grader=grader))
  return f"--config={path}"


def run(workdir, model, config):
  argv = [config, f"--config.model.path={model}", f"--workdir={workdir}"]
  process = fork_server.start("bct_jax.main", argv, ENV | caching())
  out, err = process.communicate(timeout=HANGS)
  return process.returncode, out, err


@pytest.fixture(scope="module")
def own_run(tmp_path_factory, tiny_folder):
  """A finished run, its folder, and the flag to begin another like it."""
  root = tmp_path_factory.mktemp("own files")
  folder = make_folder(root / "my data")
  (folder / "g.py").write_text(CODE)
  grader = {"kind": "python:g.py:grade"}
  command = write_config(root / "my config.py", folder, grader)
  code, _, err = run(root / "run", tiny_folder, command)
  assert code == 0, err
  return root / "run", folder, command


@pytest.mark.long
def test_files_are_recorded_and_rates_follow_their_groups(own_run):
  workdir, _, _ = own_run
  files = json.loads((workdir / "setting_files.json").read_text())
  hashes = json.loads((workdir / "env.json").read_text())["setting_files"]
  assert hashes.keys() == files.keys()
  assert {k: len(v) for k, v in files.items()} == {
    **dict.fromkeys(("install", "train", "eval", "heldout", "probe"), 10),
    "g.py": 4,
  }
  result = json.loads((workdir / "result.json").read_text())
  last = result["arms"][0]["curve"][-1]
  assert (last["n"], last["capability_n"]) == (8, 8)
  path = workdir / "arms" / "low" / "rollouts" / "step_0.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  asked = [r["cue"] for r in rows if r["split"] == "eval"]
  assert len(asked) == 8 and last["n_cues"] == len({*asked}) < 8
  assert "reading" in result["arms"][0]


@pytest.mark.long
def test_a_run_that_goes_on_refuses_other_files(own_run, tiny_folder, tmp_path):
  workdir, folder, command = own_run
  begun = shutil.copytree(workdir, tmp_path / "begun")
  for name in ("done.json", "result.json"):
    (begun / name).unlink()
  rows = rows_of("eval")
  write_rows(
    folder / "eval.jsonl", [*rows[:6], {**rows[6], "key": "x"}, *rows[7:]]
  )
  try:
    code, _, err = run(begun, tiny_folder, command)
    assert code == 2
    assert "eval differs from row 7 on, 10 rows before, 10 now" in err
    write_rows(folder / "eval.jsonl", rows)
    (folder / "g.py").write_text(CODE.replace("no comment", "comment"))
    code, _, err = run(begun, tiny_folder, command)
    assert code == 2 and "g.py differs from line 2 on" in err
  finally:
    write_rows(folder / "eval.jsonl", rows)
    (folder / "g.py").write_text(CODE)
  code, _, err = run(begun, tiny_folder, command)
  assert code == 0, err
  assert comparable(begun) == comparable(workdir)


@pytest.mark.long
def test_another_grader_labels_saved_completions(own_run):
  workdir, _, _ = own_run
  same = [r for r in rescore(workdir, json.dumps(GRADER)) if "step" in r]
  assert same and not any(r["changed"] for r in same)
  strict = {"kind": "contains", "initial": "no comment", "alternate": "it is"}
  found = [r for r in rescore(workdir, json.dumps(strict)) if "step" in r]
  # A random model says neither.
  after = [c["after"] for r in found for c in r["changed"]]
  assert after and {x["label"] for x in after} == {"other"}
  wrong = {"kind": "regex", "initial": "(?s).", "alternate": "zebra"}
  with pytest.raises(ValueError, match="the grader finds 'initial' in `alt"):
    list(rescore(workdir, json.dumps(wrong)))


def test_references_are_needed_where_they_are_scored(tmp_path, tiny_folder):
  folder = make_folder(tmp_path)
  rows = [{k: v for k, v in r.items() if k != "alternate"}
          for r in rows_of("eval")]  # fmt: skip
  write_rows(folder / "eval.jsonl", rows)
  config = experiments.config(
    tiny_folder, {"a": {}}, eval__references=False, eval__probe="file"
  )
  files = SettingConfig("file", options(folder))
  few = dataclasses.replace(config.organism.train, num_examples=8)
  config = dataclasses.replace(
    config,
    setting=files,
    organism=dataclasses.replace(config.organism, train=few),
    arms={"a": dataclasses.replace(config.arms["a"], train=few)},
  )
  plan = make_plan(config)
  assert plan.setting_facts()
  evals = dataclasses.replace(config.eval, references=True)
  with pytest.raises(ValueError, match="'eval/.*' has no `alternate`"):
    make_plan(dataclasses.replace(config, eval=evals))


@pytest.mark.long
@pytest.mark.multiprocess
def test_two_processes_elsewhere_do_the_same(own_run, tiny_folder, tmp_path):
  workdir, folder, command = own_run
  elsewhere = tmp_path / "else where"
  elsewhere.mkdir()
  env = ENV | caching() | {"PYTHONPATH": str(ROOT)}
  env["XLA_FLAGS"] = env["XLA_FLAGS"].replace("count=4", "count=2")
  argv = [
    command,
    f"--config.model.path={tiny_folder}",
    f"--workdir={elsewhere / 'run'}",
    "--multihost",
    f"--coordinator=127.0.0.1:{free_port()}",
    "--num_processes=2",
  ]
  both = [
    fork_server.start(
      "bct_jax.main", [*argv, f"--process_id={i}"], env, elsewhere
    )
    for i in range(2)
  ]
  ends = [p.communicate(timeout=HANGS) for p in both]
  assert [p.returncode for p in both] == [0, 0], ends
  one, two = comparable(workdir, False), comparable(elsewhere / "run", False)
  assert one["organism"]["provenance"] == two["organism"]["provenance"]


def test_a_sweep_takes_a_setting_of_the_user(tmp_path, tiny_folder):
  (tmp_path / "my setting.py").write_text(MY_SETTING)
  sweep = tmp_path / "sweep.py"
  sweep.write_text(
    "from bct_jax.sweep.cells import values\n"
    "from configs import tiny\n"
    "def get_config():\n"
    "  c = tiny.get_config()\n"
    f"  c.setting.name = {f'python:{tmp_path}/my setting.py:Mine'!r}\n"
    "  c.arms = {}\n"
    "  return c\n"
    "def get_cells():\n"
    "  return values('setting.options.mark', 'a', 'b')\n"
  )
  argv = [f"--sweep={sweep}", f"--config.model.path={tiny_folder}"]
  argv += ["--dry_run", "--notime"]
  process = fork_server.start("bct_jax.sweep", argv, ENV)
  out, err = process.communicate(timeout=HANGS)
  assert process.returncode == 0, err
  assert "mark_a: " in out and "mark_b: " in out


def test_a_train_file_is_read_and_tokenized_once_for_all_arms(
  tiny_folder, tmp_path, monkeypatch
):
  path, calls = tmp_path / "rows.jsonl", collections.Counter()
  row = '{"prompt": "Is it?", "completion": "It is number %d."}\n'
  path.write_text("".join(row % i for i in range(20)))

  def count(place, name):
    original = getattr(place, name)

    def counting(*args, **more):
      calls[name] += 1
      return original(*args, **more)

    monkeypatch.setattr(place, name, counting)

  count(read_once, "read_examples")
  count(Chat, "example")
  values = tiny.get_config().to_dict()
  values["model"]["path"] = str(tiny_folder)
  train = {"source": "file", "file": str(path), "num_examples": 20, "steps": 1}
  plain = {**train, "decoration": "plain"}
  values["arms"] = {
    "a": {"train": train, "optim": {"lr": 1e-3}},
    "b": {"train": train, "optim": {"lr": 1e-4}},
    "plain": {"train": plain},
  }
  install = values["organism"]["train"]["num_examples"]
  plan = make_plan(from_dict(values))
  assert calls == {"read_examples": 1, "example": install + 2 * 20}
  assert plan.arms["a"].hash == plan.arms["b"].hash != plan.arms["plain"].hash
  path.write_text(path.read_text().replace("number 3.", "number 33."))
  again = make_plan(from_dict(values))
  assert calls["read_examples"] == 2
  assert again.arms["a"].hash != plan.arms["a"].hash
