"""Damages of every file of a run: none is silent; see experiment/README.md."""

import collections
import json
import shutil
import types

import fork_server
import pytest
from cases import long_but
from own_files import GRADER, make_folder
from runs import ENV, ROOT, caching, comparable, run

from bct_jax.config import from_dict
from bct_jax.experiment.arm_files import check_files
from bct_jax.infra import (
  done_file,
  exit_codes,
  files,
  ledger,
  shared_files,
)
from bct_jax.report.read.load import load_run
from bct_jax.report.read.types import ReportError


def change_key(data):
  """Renames the first key of the last line, or of the whole object."""
  start = data.find(b'"', data.rfind(b"\n", 0, -1) + 1)
  start = data.find(b'"') if start < 0 else start
  return data[: start + 1] + b"x" + data[start + 1 :] if start > 0 else data


DAMAGES = {
  "truncated": lambda data: data[: len(data) // 2],
  "emptied": lambda data: b"",
  "byte": lambda data: (
    data[: len(data) // 2]
    + bytes([data[len(data) // 2] ^ 1])
    + data[len(data) // 2 + 1 :]
  ),
  "key": change_key,
  "replaced": lambda data: b'{"of": "another run"}\n',
  "deleted": lambda data: None,
}


def each_damage(folder, how):
  """Yields the name of each file, while it is damaged."""
  for path in sorted(p for p in folder.rglob("*") if p.is_file()):
    data = path.read_bytes()
    if not data or path.is_symlink() or DAMAGES[how](data) == data:
      continue
    damaged = DAMAGES[how](data)
    path.unlink()
    if damaged is not None:
      path.write_bytes(damaged)
    yield path.relative_to(folder).as_posix(), len(damaged or b"") == len(data)
    path.write_bytes(data)


def is_read_elsewhere(name, same_size):
  """Tells who finds a damage that a report cannot: see test_faults.py."""
  if name.split("/")[-1] in ("report.html", ".lock"):
    return "made again"
  if "/checkpoints/" in name and same_size:
    return "refused by checksums when it is loaded"
  return ""


def outcome_of_report(folder, name):
  """What load_run does about a damaged file; it must name the file."""
  try:
    notes = load_run(folder).notes
  except ReportError as e:
    assert name in str(e) or name.startswith("organisms"), (name, e)
    return "refused by name"
  said = " ".join(notes)
  if name == ledger.NAME:
    return "not read"  # a ledger is for a run that goes on
  parts = name.split("/")
  outer = ["/".join(parts[:i]) for i in range(2, len(parts) + 1)]
  assert any(x in said for x in [name, *outer]) or "and " in said, (name, said)
  return "named in the report"


@pytest.mark.parametrize("how", long_but(["byte", "deleted"], list(DAMAGES)))
def test_a_report_names_each_damaged_file_of_a_done_run(
  how, finished, tmp_path, capsys
):
  report_names_each(how, shutil.copytree(finished[0], tmp_path / "run"))


def report_names_each(how, folder):
  """Checks that a report names each damage of a done run."""
  assert not done_file.describe_damage(folder)
  outcomes = collections.Counter()
  for name, same_size in each_damage(folder, how):
    outcome = is_read_elsewhere(name, same_size)
    outcomes[outcome or outcome_of_report(folder, name)] += 1
  assert sum(outcomes.values()) > 30
  assert outcomes["named in the report"] + outcomes["refused by name"] > 20
  print(how, dict(outcomes))  # with -s: the table of the guide


def unfinished(folder, finished):
  """A copy of a run whose last arm has trained, and is not done."""
  shutil.copytree(finished, folder)
  for path in (folder, folder / "arms" / names_of(folder)[-1]):
    (path / "done.json").unlink()
  (folder / "result.json").unlink()
  return folder


def names_of(folder):
  """The names of a run's arms; the last one is left unfinished."""
  return sorted(p.name for p in (folder / "arms").iterdir())


MADE_AGAIN = {
  *("env.json", "provenance.json", "made.json", "weights.json"),
  *("mask_audit.txt", "eval_facts.json", "report.html", ".lock"),
}


def outcome_of_resume(folder, plan):
  """What a run does that goes on there, up to its training."""
  shared_files.track(folder, "use another --workdir")
  organism = next(p for p in folder.glob("organisms/*") if p.is_dir())
  shared_files.track(organism, "remove it")
  said = "goes on"
  try:
    files.read_json_or_none(folder / "config.json")
    files.read_json_or_none(folder / "setting_files.json")
    files.read_lines(organism / "metrics.jsonl")
    for pair in (
      ("base.json", "base_rollouts.jsonl"),
      ("gate.json", "rollouts.jsonl"),
    ):
      if not shared_files.are_whole(*(organism / name for name in pair)):
        said = "made again"
    for name in names_of(folder):
      was_done = (folder / "arms" / name / "done.json").exists()
      if was_done and not check_files(plan, name, folder / "arms" / name):
        said = "made again"
      elif not was_done:
        check_files(plan, name, folder / "arms" / name)
  except ledger.DamagedFile as e:
    assert "restore it, or" in str(e)
    said = f"refused: {e.damage}"
  finally:
    ledger.forget(folder)
  return said


@pytest.mark.parametrize("how", long_but(["byte", "deleted"], list(DAMAGES)))
def test_a_run_that_goes_on_refuses_or_remakes_each_damaged_file(
  how, finished, tmp_path
):
  run_refuses_or_remakes_each(how, unfinished(tmp_path / "run", finished[0]))


def run_refuses_or_remakes_each(how, folder):
  """Checks what an unfinished run does about each damage when it goes on."""
  done = names_of(folder)[:-1]
  config = from_dict(json.loads((folder / "config.json").read_text())["config"])
  plan = types.SimpleNamespace(config=config, fall_back=False)
  assert outcome_of_resume(folder, plan) == "goes on"
  outcomes = collections.Counter()
  for name, _ in each_damage(folder, how):
    if "/checkpoints/" in name:
      continue  # see test_faults.py
    last = name.split("/")[-1]
    outcome = outcome_of_resume(folder, plan)
    is_done = any(name.startswith(f"arms/{arm}/") for arm in done)
    if last in MADE_AGAIN and not is_done:
      outcome = "made again"
    elif last == ledger.NAME:
      outcome = "said"
    elif is_done and last == "done.json" and how == "deleted":
      outcome = "made again"
    assert outcome != "goes on", (name, how)
    if outcome.startswith("refused"):
      assert name in outcome, (name, outcome)
      outcome = "refused by name"
    outcomes[outcome] += 1
  assert outcomes["refused by name"] >= 5
  print(how, dict(outcomes))


# A policy gradient, a reference, and a user's own files.
OWN_SAMPLES = """
from configs import tiny

def get_config():
  c = tiny.get_config()
  c.setting.name = "file"
  c.setting.options.folder = {folder!r}
  c.setting.options.grader = {grader!r}
  c.eval.probe = "file"
  for run in (c.organism, c):
    run.train.num_examples, run.train.decoration = 8, "plain"
  c.sampling.stop = ("a", "e", "i", "o", "u")
  length = {{"reward": "length", "length_target": 2, "kl_coef": 0.1}}
  policy = {{"objective": "policy_gradient", "source": "on_policy"}}
  dpo = {{"objective": "dpo", "options": {{"rejected": "shuffled"}}}}
  c.arms = {{
    "dpo": {{"train": {{**dpo, "steps": 2}}}},
    "policy": {{"train": {{**policy, "options": length, "steps": 2}}}},
  }}
  return c
"""


@pytest.fixture(scope="module", params=["own samples", "sweep together"])
def other_kind(request, tiny_folder, tmp_path_factory):
  """A finished run that draws its own samples, or a cell of a sweep."""
  root, program = tmp_path_factory.mktemp("kind"), "bct_jax.main"
  flags = [f"--config.model.path={tiny_folder}", f"--workdir={root / 'run'}"]
  wanted, folder = 0, root / "run"
  if request.param == "own samples":
    data = make_folder(root / "data")
    text = OWN_SAMPLES.format(folder=str(data), grader=GRADER)
    (root / "c.py").write_text(text)
    flags.insert(0, f"--config={root / 'c.py'}")
  else:
    program, wanted = "bct_jax.sweep", exit_codes.FAILED  # one diverges
    sweep = ROOT / "tests" / "support" / "sweep_together.py"
    flags = [f"--sweep={sweep}", "--together=4", *flags]
    folder = root / "run" / "cells" / "lr_0.01-schedule_linear"
  process = fork_server.start(program, flags, ENV | caching())
  _, err = process.communicate(timeout=300)
  assert process.returncode == wanted, err
  return folder


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
def test_runs_of_other_kinds_hide_no_damage(how, other_kind, tmp_path):
  report_names_each(how, shutil.copytree(other_kind, tmp_path / "done"))
  begun = unfinished(tmp_path / "begun", other_kind)
  run_refuses_or_remakes_each(how, begun)


# A file of the unfinished run, the damage, and what its command prints.
RESUMED = [
  ("arms/low/evals.jsonl", "deleted", "evals.jsonl is missing: restore it"),
  ("arms/low/metrics.jsonl", "truncated", "metrics.jsonl has "),
  ("organisms/*/gate.json", "key", "gate.json is not what was written"),
  ("config.json", "truncated", ""),
]


@pytest.mark.slow
def test_the_command_refuses_or_remakes_a_damaged_file(
  finished, tiny_folder, tmp_path
):
  for i, (name, how, said) in enumerate(RESUMED):
    folder = unfinished(tmp_path / str(i), finished[0])
    path = next(folder.glob(name))
    damaged = DAMAGES[how](path.read_bytes())
    path.unlink()
    if damaged is not None:
      path.write_bytes(damaged)
    code, _, err = run(folder, tiny_folder)
    assert said in err, (name, err)
    if "arms/" in name:
      assert code == 2 and "--resume=latest_good" in err
      code, _, err = run(folder, tiny_folder, "--resume=latest_good")
      shutil.rmtree(folder / "arms" / "low.damaged")
    assert code == 0, err
    assert comparable(folder) == comparable(finished[0])
    assert not done_file.find_damage(folder)
