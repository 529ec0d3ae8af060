"""Runs grow: what is there stays bit for bit, what is new is said."""

import copy
import json
import shutil
import types

import fork_server
import pytest
from experiments import lines
from runs import ENV, HANGS, caching, comparable, run

from bct_jax.config import ConfigError, from_dict
from bct_jax.experiment import growth, other_run
from bct_jax.experiment.plan import Plan, make_plan
from bct_jax.infra import done_file, ledger
from bct_jax.report.read.load import load_run
from configs import tiny

MORE = ("--config.eval.num_eval=11", "--config.eval.num_probe=9")


@pytest.fixture(scope="module")
def grown(finished, tiny_folder, tmp_path_factory):
  """A run that was finished and got an arm, a seed, and more prompts."""
  workdir = tmp_path_factory.mktemp("grown") / "run"
  shutil.copytree(finished[0], workdir)
  arms = tmp_path_factory.mktemp("config") / "grown.py"
  arms.write_text(
    "from configs import tiny\n"
    "def get_config():\n"
    "  c = tiny.get_config()\n"
    '  c.arms.new = {"optim": {"lr": 1e-3}}\n'
    '  c.arms.seed1 = {"optim": {"lr": 1e-4}, "train": {"seed": 1}}\n'
    "  return c\n"
  )
  code, err = _grow(workdir, tiny_folder, arms, *MORE)
  assert code == 0, err
  return workdir, err, arms


def _grow(workdir, folder, file, *flags):
  argv = [f"--config={file}", f"--config.model.path={folder}", *flags]
  argv += [f"--workdir={workdir}"]
  process = fork_server.start("bct_jax.main", argv, ENV | caching())
  _, err = process.communicate(timeout=HANGS)
  return process.returncode, err


def _rows(folder):
  return {growth.key_of(row): row for row in lines(folder)}


@pytest.mark.long
def test_old_rows_stay_and_missing_ones_are_sampled(finished, grown):
  before, now = finished[0], grown[0]
  organism = json.loads((now / "result.json").read_text())["organism"]["hash"]
  names = [
    f"arms/{n}/rollouts/step_{s}" for n in ("high", "low") for s in (0, 2, 4)
  ]
  names += [f"organisms/{organism}/{n}rollouts" for n in ("", "base_")]
  for name in names:
    old, new = (_rows(x / f"{name}.jsonl") for x in (before, now))
    assert {k: new[k] for k in old} == old
    assert len(new) == len(old) + 4
    splits = [key[0] for key in new]
    assert splits == sorted(splits, key=["eval", "heldout", "probe"].index)
  # Neither the organism nor an old row was made again.
  assert "train install: 0 steps to do" in grown[1]
  assert "gate: 4 rows to do" in grown[1]
  assert "low eval 2: 4 rows to do" in grown[1]
  assert "new eval 2: 28 rows to do" in grown[1]
  assert "train seed1 (4 of 4): 4 steps to do" in grown[1]


@pytest.mark.long
def test_what_was_added_is_said(finished, grown):
  before, now = comparable(finished[0]), comparable(grown[0])
  assert [a["name"] for a in before["arms"]] == ["low", "high"]
  names = ["low", "high", "new", "seed1"]
  assert [a["name"] for a in now["arms"]] == names
  assert [arm.name for arm in load_run(grown[0]).arms] == names
  assert "growth" not in before
  (entry,) = now["growth"]
  assert sorted(entry["arms"]) == ["new", "seed1"] and entry["at"][:2] == "20"
  assert entry["prompts"] == {"num_eval": [8, 11], "num_probe": [8, 9]}
  old, new = (x["organism"]["gate"] for x in (before, now))
  assert old["eval_hash"] != new["eval_hash"] and new["n"] == 11
  notes = " ".join(load_run(grown[0]).notes)
  assert "eval.num_eval 8 to 11, old answers kept" in notes
  # Weights of before are not kept twice.
  folders = list((grown[0] / growth.BEFORE / "1").iterdir())
  assert {f.name for f in folders} == {"high", "low"}
  assert not list((grown[0] / growth.BEFORE).glob("*/*/checkpoints"))


@pytest.mark.long
def test_a_grown_run_is_done_and_refuses_to_shrink(grown, tiny_folder):
  workdir, _, arms = grown
  code, err = _grow(workdir, tiny_folder, arms, *MORE)
  assert code == 0 and "done already" in err
  code, err = _grow(workdir, tiny_folder, arms)
  assert code == 2 and "eval.num_eval: 11 -> 8" in err


@pytest.mark.parametrize(
  "field, value",
  [
    ("eval.num_eval", 7),
    ("eval.seed", 2),
    ("train.seed", 3),
    ("arms.low.optim.lr", 1.0),
    ("sampling.max_new_tokens", 13),
    ("reading.kept", 0.7),
  ],
)
def test_what_changes_old_results_is_no_growth(field, value):
  then = tiny.get_config().to_dict()
  now = copy.deepcopy(then)
  now["arms"]["more"] = {"train": {"seed": 9}}
  assert growth.find_growth(then, now).arms == ("more",)
  *groups, name = field.split(".")
  group = now
  for key in groups:
    group = group[key]
  group[name] = value
  assert growth.find_growth(then, now) is None


def test_new_prompts_take_row_ids_behind_all_that_were_there(tiny_folder):
  c = tiny.get_config()
  c.model.path = str(tiny_folder)
  c.eval.num_eval, c.eval.num_heldout, c.eval.num_probe = 3, 2, 2
  plan = make_plan(from_dict(c.to_dict()))
  assert plan.row_ids == [0, 1, 2, 3, 4, 5, 6]
  before = ({"eval": 1, "heldout": 2, "probe": 1},)
  object.__setattr__(plan, "earlier", before)
  assert plan.row_ids == [0, 4, 5, 1, 2, 3, 6]


def test_a_growth_that_was_killed_goes_on(tmp_path):
  plan = Plan(*(None,) * 3, (), None, {})
  entry = {"prompts": {"num_eval": [1, 2]}, "eval": {"eval": 1}}
  text = json.dumps({"config": {}, "growth": [{"prompts": {}}, entry]})
  (tmp_path / "config.json").write_text(text)
  (tmp_path / "arms" / "a").mkdir(parents=True)
  for _ in range(2):  # the second time the arms are those of the larger run
    assert growth.prepare_growth(plan, tmp_path).earlier == ({"eval": 1},)
    assert (tmp_path / growth.BEFORE / "1" / "a").is_dir()
    (tmp_path / "arms" / "b").mkdir(parents=True, exist_ok=True)
  assert (tmp_path / "arms" / "b").is_dir()


@pytest.mark.long
def test_updates_that_differ_are_refused(grown):
  folder = grown[0] / "arms" / "low"
  arm = growth.ArmBefore.__new__(growth.ArmBefore)
  arm._folder = folder
  arm._folders = [grown[0] / growth.BEFORE / "1" / "low"]
  arm.check_updates(4)
  path = folder / "metrics.jsonl"
  text = path.read_text()
  rows = [json.loads(x) for x in text.splitlines()]
  rows[2]["loss"] += 1e-6
  path.write_text("".join(json.dumps(r) + "\n" for r in rows))
  arm.check_updates(2)
  with pytest.raises(ConfigError, match="update 3, made again .* has loss"):
    arm.check_updates(3)
  path.write_text(text)


@pytest.mark.long
def test_damage_to_arms_of_before_is_named(grown, tmp_path):
  workdir, name = tmp_path / "run", f"{growth.BEFORE}/1/low/evals.jsonl"
  shutil.copytree(grown[0], workdir)
  assert not done_file.find_damage(workdir)
  text = (workdir / name).read_text()
  (workdir / name).write_text(text[: text.rindex("{")])
  assert list(done_file.find_damage(workdir)) == [name]
  (workdir / "done.json").unlink()
  assert list(done_file.find_damage(workdir)) == [name]
  plan = types.SimpleNamespace(earlier=({},))
  with pytest.raises(ledger.DamagedFile, match=name):
    growth.ArmBefore(plan, workdir / "arms" / "low")
  ledger.forget(workdir)


@pytest.mark.long
def test_organism_of_another_run(finished, tiny_folder, tmp_path):
  source, workdir = finished[0], tmp_path / "other"
  flag = f"--config.organism.from_run={source}"
  code, _, err = run(workdir, tiny_folder, flag, "--config.optim.b1=0.8")
  assert code == 0, err
  assert "is taken from" in err and "gate:" not in err
  assert "train install: 0 steps to do" in err
  then, now = (comparable(x)["organism"] for x in (source, workdir))
  assert now.pop("from_run") == str(source.absolute()) and now == then
  # Another organism is refused with what differs.
  code, _, err = run(
    tmp_path / "third", tiny_folder, flag, "--config.organism.optim.lr=0.5"
  )
  assert code == 2 and "optim.lr 0.001 there, 0.5 here" in err


def test_a_changed_or_unfinished_organism_is_refused(finished, tmp_path):
  (source,) = (finished[0] / "organisms").iterdir()
  facts = json.loads((source / "provenance.json").read_text())
  copied = tmp_path / "run" / "organisms" / source.name
  shutil.copytree(source, copied)
  target = tmp_path / "new" / "organisms" / source.name
  (copied / "gate.json").rename(tmp_path / "gate.json")
  with pytest.raises(ConfigError, match="has no gate.json; finish that run"):
    other_run.take_organism(tmp_path / "run", target, facts)
  (tmp_path / "gate.json").rename(copied / "gate.json")
  (copied / "provenance.json").write_text(json.dumps(facts | {"kind": "x"}))
  with pytest.raises(ConfigError, match="is not what the name"):
    other_run.take_organism(tmp_path / "run", target, facts)
  shutil.copy(source / "provenance.json", copied)
  text = (copied / "gate.json").read_text()
  (copied / "gate.json").write_text(text.replace("1.0", "0.9", 1))
  with pytest.raises(ConfigError, match="gate.json is not what was written"):
    other_run.take_organism(tmp_path / "run", target, facts)
  assert not target.exists()
