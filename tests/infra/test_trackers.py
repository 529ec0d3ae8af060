"""TensorBoard and Weights & Biases get what is logged, each step once."""

import sys

import events
import pytest
from runs import ROOT, run, start_to_kill, wait_for, wait_until

from bct_jax.config import LogConfig, from_dict
from bct_jax.infra import exit_codes, files, trackers
from bct_jax.modes import experiment
from bct_jax.sweep import __main__ as sweep
from configs import tiny

FILE = ROOT / "tests" / "support" / "sweep_tiny.py"
OFF = LogConfig(False, "")
TENSORBOARD = LogConfig(True, "")
WANDB = LogConfig(False, "project")


@pytest.fixture
def offline(monkeypatch):
  pytest.importorskip("wandb")
  for name, value in (("MODE", "offline"), ("SILENT", "true")):
    monkeypatch.setenv(f"WANDB_{name}", value)


def log_steps(folder, tell, first, last):
  """As a run does: updates, an eval after each second, told one by one."""
  for step in range(first, last + 1):
    row = {"step": step, "loss": 1 / step, "tokens": 7}
    files.append_line(folder / "metrics.jsonl", row)
    tell()
    if step % 2 == 0:
      row = {"step": step, "initial": 0.5, "initial_ci": [0.25, 0.75]}
      row |= {"reasons": {"both": 2}, "note": "text"}
      files.append_line(folder / "evals.jsonl", row)
      tell()


def killed_and_resumed(folder, log):
  """Six steps, of which 5 and 6 were made twice."""
  with trackers.open_trackers(log, folder, "run", {"lr": 0.1}) as tell:
    log_steps(folder, tell, 1, 6)
  # What was begun in the same second would have the same name.
  for path in [*folder.glob("tensorboard/*"), *folder.glob("wandb/offline-*")]:
    path.rename(f"{path}-earlier")
  for name in ("metrics.jsonl", "evals.jsonl"):
    files.drop_after(folder / name, 4)
  with trackers.open_trackers(log, folder, "run", {"lr": 0.1}) as tell:
    log_steps(folder, tell, 5, 8)


def wandb_rows(folder, count):
  """Its own process writes them: the last may come after `finish`."""

  def rows():
    return events.wandb(folder)

  wait_until(rows, lambda: len(rows()) >= count)
  return rows()


def test_numbers_by_name():
  row = {"step": 3, "a": 1, "b_ci": [0.1, 0.2], "c": {"d": 2}, "e": "x"}
  row |= {"f": None, "g": True, "h": [1, 2, 3]}
  assert dict(trackers.scalars(row, "eval")) == {
    "eval/a": 1.0, "eval/b_ci/low": 0.1, "eval/b_ci/high": 0.2,
    "eval/c/d": 2.0, "eval/g": 1.0,
  }  # fmt: skip


def test_half_a_line_is_left_for_the_next_time(tmp_path):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(b'{"step": 1}\n{"ste')
  rows, at = trackers._rows(path, 0)
  assert rows == [{"step": 1}] and at == 12
  path.write_bytes(b'{"step": 1}\n{"step": 2}\n')
  assert trackers._rows(path, at) == ([{"step": 2}], 24)


def test_off_writes_nothing(tmp_path):
  killed_and_resumed(tmp_path, OFF)
  names = {p.name for p in tmp_path.iterdir()}
  assert names == {"metrics.jsonl", "evals.jsonl"}


def test_tensorboard_has_every_step_once(tmp_path):
  pytest.importorskip("tensorboardX")
  killed_and_resumed(tmp_path, TENSORBOARD)
  found = events.tensorboard(tmp_path / "tensorboard")
  losses = [(step, v) for tag, step, v in found if tag == "train/loss"]
  assert [s for s, _ in losses] == list(range(1, 9))
  assert [v for _, v in losses] == pytest.approx([1 / s for s in range(1, 9)])
  evals = {tag: [] for tag, _, _ in found if tag.startswith("eval/")}
  for tag, step, value in found:
    if tag in evals:
      evals[tag].append((step, value))
  assert evals == {
    f"eval/{name}": [(step, value) for step in (2, 4, 6, 8)]
    for name, value in (
      ("initial", 0.5),
      ("initial_ci/low", 0.25),
      ("initial_ci/high", 0.75),
      ("reasons/both", 2.0),
    )
  }


@pytest.mark.long
def test_wandb_has_every_step_once(tmp_path, offline):
  killed_and_resumed(tmp_path, WANDB)
  rows = wandb_rows(tmp_path, 12)
  losses = {r["step"]: r["train/loss"] for r in rows if "train/loss" in r}
  assert losses == {s: pytest.approx(1 / s) for s in range(1, 9)}
  evals = sorted(r["step"] for r in rows if "eval/initial" in r)
  assert evals == [2, 4, 6, 8] and len(rows) == 12
  folders = list((tmp_path / "wandb").glob("offline-run-*"))
  known = files.read_json(tmp_path / "wandb.json")
  assert known["sent"] == {"metrics.jsonl": 8, "evals.jsonl": 8}
  assert all(known["id"] in f.name for f in folders)
  assert len(folders) == 2
  # In another project it is another run, with all that was logged.
  with trackers.open_trackers(LogConfig(False, "other"), tmp_path, "run", {}):
    pass
  assert files.read_json(tmp_path / "wandb.json")["id"] != known["id"]
  assert len(wandb_rows(tmp_path, 24)) == 24


@pytest.mark.parametrize(
  ("field", "value", "package", "extra"),
  [
    ("tensorboard", True, "tensorboardX", "tb"),
    ("wandb", "project", "wandb", "wandb"),
  ],
)
def test_a_package_that_is_missing_ends_it_before_anything(
  field, value, package, extra, tmp_path, monkeypatch, capsys
):
  real = trackers.importlib.util.find_spec
  monkeypatch.setattr(
    trackers.importlib.util,
    "find_spec",
    lambda name, *more: None if name == package else real(name, *more),
  )
  raw = tiny.get_config().to_dict()
  raw["log"][field] = value
  workdir = tmp_path / "run"
  with pytest.raises(trackers.TrackerError) as caught:
    experiment.run_experiment(from_dict(raw), raw, {}, workdir)
  message = f"log.{field} = {value!r}: the package {package} is not installed"
  assert str(caught.value) == f"{message}: pip install 'bct_jax[{extra}]'"
  flags = ["sweep", f"--sweep={FILE}", f"--workdir={workdir}"]
  flags.append(f"--config.log.{field}={value}")
  monkeypatch.setattr(sys, "argv", flags)  # which ml_collections looks at
  assert sweep.main(flags) == exit_codes.BAD_INPUT
  assert message in capsys.readouterr().err
  assert not workdir.exists()


@pytest.mark.slow
def test_a_killed_run_has_every_step_once(tmp_path, tiny_folder):
  pytest.importorskip("tensorboardX")
  workdir, flag = tmp_path / "run", "--config.log.tensorboard=True"
  process = start_to_kill(workdir, tiny_folder, flag)
  wait_for(process, workdir, "arms/high/checkpoints/2*")
  process.kill()
  process.communicate()
  code, _, err = run(workdir, tiny_folder, flag)
  assert code == 0, err
  for folder in [*workdir.glob("arms/*"), *workdir.glob("organisms/*")]:
    found = events.tensorboard(folder / "tensorboard")
    for file, tag in (("metrics", "train/loss"), ("evals", "eval/initial")):
      rows = files.read_lines(folder / f"{file}.jsonl")
      name = tag.split("/")[1]
      assert [(s, v) for t, s, v in found if t == tag] == [
        (r["step"], pytest.approx(r[name])) for r in rows
      ]
      assert rows or folder.parent.name == "organisms"
