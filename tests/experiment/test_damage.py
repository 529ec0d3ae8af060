"""Damages of every file of a run: none is silent; see experiment/README.md."""

import collections
import json
import shutil
import types

import pytest
from cases import long_but
from runs import comparable, run

from bct_jax.config import from_dict
from bct_jax.experiment.arm_files import check_files
from bct_jax.infra import done_file, files, ledger, shared_files
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
    damaged = DAMAGES[how](data)
    if damaged == data or path.is_symlink():
      continue
    path.unlink()
    if damaged is not None:
      path.write_bytes(damaged)
    yield path.relative_to(folder).as_posix(), len(damaged or b"") == len(data)
    path.write_bytes(data)


def is_read_elsewhere(name, same_size):
  """Tells who finds a damage that a report cannot: see test_faults.py."""
  if name in ("report.html", ".lock"):
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
  folder = tmp_path / "run"
  shutil.copytree(finished[0], folder)
  assert not done_file.describe_damage(folder)
  outcomes = collections.Counter()
  for name, same_size in each_damage(folder, how):
    outcome = is_read_elsewhere(name, same_size)
    outcomes[outcome or outcome_of_report(folder, name)] += 1
  assert sum(outcomes.values()) > 40
  assert outcomes["named in the report"] + outcomes["refused by name"] > 20
  print(how, dict(outcomes))  # with -s: the table of the guide


def unfinished(folder, finished):
  """A copy of a run whose second arm has trained, and is not done."""
  shutil.copytree(finished, folder)
  for path in (folder, folder / "arms" / "low"):
    (path / "done.json").unlink()
  (folder / "result.json").unlink()
  return folder


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
    files.read_lines(organism / "metrics.jsonl")
    for pair in (
      ("base.json", "base_rollouts.jsonl"),
      ("gate.json", "rollouts.jsonl"),
    ):
      if not shared_files.are_whole(*(organism / name for name in pair)):
        said = "made again"
    for name in ("high", "low"):
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
  folder = unfinished(tmp_path / "run", finished[0])
  config = from_dict(json.loads((folder / "config.json").read_text())["config"])
  plan = types.SimpleNamespace(config=config, fall_back=False)
  assert outcome_of_resume(folder, plan) == "goes on"
  outcomes = collections.Counter()
  for name, _ in each_damage(folder, how):
    if "/checkpoints/" in name:
      continue  # see test_faults.py
    last = name.split("/")[-1]
    outcome = outcome_of_resume(folder, plan)
    if last in MADE_AGAIN and not name.startswith("arms/high"):
      outcome = "made again"
    elif last == ledger.NAME:
      outcome = "said"
    elif name == "arms/high/done.json" and how == "deleted":
      outcome = "made again"
    assert outcome != "goes on", (name, how)
    if outcome.startswith("refused"):
      assert name in outcome, (name, outcome)
      outcome = "refused by name"
    outcomes[outcome] += 1
  assert outcomes["refused by name"] >= 10
  print(how, dict(outcomes))


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
