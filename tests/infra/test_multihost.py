"""Runs of several processes, with --multihost, through the command line."""

import json
import os
import shutil
import signal
from pathlib import Path

import fork_server
import jax
import pytest
from conftest import QUICK
from runs import HANGS, ROOT, caching, caching_apart, comparable, run, start
from workers import DEVICES, Cluster, free_port

from bct_jax.config import ConfigError
from bct_jax.infra import files, lost_processes, processes

pytestmark = pytest.mark.multiprocess


def experiment(count, workdir, folder, **more):
  flags = (f"--workdir={workdir}", f"--config.model.path={folder}")
  return Cluster.start(count, *flags, **more)


def assert_equal_runs(ours, theirs):
  """Losses to 1e-5, all labels and what follows from them equal."""
  for name in ("high", "low"):
    a, b = (
      files.read_lines(w / "arms" / name / "metrics.jsonl")
      for w in (ours, theirs)
    )
    assert [x["step"] for x in a] == [x["step"] for x in b] == [1, 2, 3, 4]
    assert [x["loss"] for x in a] == pytest.approx(
      [x["loss"] for x in b], rel=1e-5
    )
    for step in (0, 2, 4):
      file = Path("arms", name, "rollouts", f"step_{step}.jsonl")
      a, b = (files.read_lines(w / file) for w in (ours, theirs))
      assert [(x["id"], x["label"]) for x in a] == [
        (x["id"], x["label"]) for x in b
      ]
  assert comparable(ours, False) == comparable(theirs, False)


@pytest.mark.long
@pytest.mark.parametrize("count", [pytest.param(2, marks=pytest.mark.core), 4])
def test_several_processes_give_what_one_gives(
  count, finished, tiny_folder, tmp_path
):
  workdir = tmp_path / "run"
  first, *others = experiment(count, workdir, tiny_folder).end()
  assert first[0] == 0, first[2]
  assert "integrity unknown" in first[1] and "train low" in first[2]
  for code, _, err in others:
    assert code == 0, err
    assert "train" not in err and "step" not in err
  assert_equal_runs(workdir, finished[0])
  assert not list(workdir.rglob("*partial*"))
  env = json.loads((workdir / "env.json").read_text())
  assert env["num_processes"] == count and env["num_devices"] == DEVICES


@pytest.mark.long
@pytest.mark.parametrize("mode", ["eval", "sample", "export"])
def test_other_modes_of_two_processes(mode, finished, tiny_folder, tmp_path):
  flags = [f"--mode={mode}", f"--params={finished[0] / 'arms' / 'high'}"]
  if mode == "sample":
    flags += ["--prompt=Hello?", "--prompt=What is 1 plus 2?"]
  outs = [tmp_path / "one", tmp_path / "two"]
  code, out, err = run(tmp_path, tiny_folder, *flags, f"--out={outs[0]}")
  assert code == 0, err
  flags += [f"--config.model.path={tiny_folder}", f"--out={outs[1]}"]
  two = Cluster.start(2, *flags).end()
  assert [code for code, _, _ in two] == [0, 0], two
  if mode == "export":
    names = [sorted(p.name for p in out.iterdir()) for out in outs]
    assert names[0] == names[1]
    outs = [out / "model.safetensors" for out in outs]
    assert outs[0].read_bytes() == outs[1].read_bytes()
    return
  a, b = (files.read_lines(out) for out in outs)
  assert [x["text"] for x in a] == [x["text"] for x in b]
  if mode == "eval":
    shown = two[0][1]  # after what gloo prints
    rates = [json.loads(x) for x in (shown[shown.index("{") :], out)]
    for record in rates:
      assert record.pop("logprob_difference") < 1e-4  # rounding
    assert rates[0] == rates[1]
    assert "{" not in two[1][1]


@pytest.mark.long
def test_one_process_stopped_or_killed(finished, tiny_folder, tmp_path):
  """All stop at one step; the same command ends with the same numbers."""
  workdir = tmp_path / "run"
  for arm, how in (("low", signal.SIGTERM), ("high", signal.SIGKILL)):
    kept = caching_apart(tmp_path)
    cluster = experiment(2, workdir, tiny_folder, timeout=30, kept=kept)
    cluster.wait_for(f"arms/{arm}/evals.jsonl", workdir)
    cluster.processes[1].send_signal(how)
    (code, _, err), (other, _, _) = cluster.end()
    if how == signal.SIGTERM:
      assert (code, other) == (75, 75), err
      assert "error: stopped" in err.strip().splitlines()[-1]
    else:
      assert code == processes.MACHINE and other == -signal.SIGKILL, err
      last = err.strip().splitlines()[-1]
      assert last.startswith("error: ") and "another process is gone" in last
  done = experiment(2, workdir, tiny_folder).end()
  assert [code for code, _, _ in done] == [0, 0], done
  assert_equal_runs(workdir, finished[0])


# --- hosts that disagree ------------------------------------------------------


@pytest.mark.long
def test_other_config_or_code_is_named(tiny_folder, tmp_path):
  """F22: before step 0, in every process, with the process and the field."""
  code = tmp_path / "code"
  shutil.copytree(ROOT / "bct_jax", code / "bct_jax")
  (code / "configs").symlink_to(ROOT / "configs")
  with open(code / "bct_jax" / "train" / "step.py", "a") as f:
    f.write("# changed on this host only\n")
  done = experiment(
    2,
    tmp_path / "run",
    tiny_folder,
    own=[[], ["--config.arms.low.optim.lr=3e-4"]],
    cwd=[ROOT, code],
    code=[ROOT, code],
  ).end()
  for code, _, err in done:
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    assert "config.arms.low.optim.lr is 0.0001 in process 0" in last
    assert "0.0003 in process 1 (" in last and "code is" in last
  assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_other_data_and_weights_are_named(tiny_folder, tmp_path):
  """The same path, with another template and weights on the second host."""
  for name in ("a", "b"):
    shutil.copytree(tiny_folder, tmp_path / name / "model")
  changed = tmp_path / "b" / "model"
  with open(changed / "model.safetensors", "r+b") as f:
    f.seek(-1, os.SEEK_END)
    f.write(b"\x01")
  template = next(
    p for p in changed.iterdir() if "chat_template" in p.read_text("latin-1")
  )
  config = json.loads(template.read_text())
  config["chat_template"] = "Hi! " + config["chat_template"]
  template.write_text(json.dumps(config))
  cwd = [tmp_path / "a", tmp_path / "b"]
  done = experiment(2, tmp_path / "run", "model", cwd=cwd).end()
  for code, _, err in done:
    assert code == 2, err
    last = err.strip().splitlines()[-1]
    for what in ("weights of the model", "chat template", "data of arms.high"):
      assert f"{what} is" in last, last
    assert "in process 1 (" in last
  assert not (tmp_path / "run" / "organisms").exists()


@pytest.mark.long
def test_model_that_one_host_lacks_is_named(tiny_folder, tmp_path):
  shutil.copytree(tiny_folder, tmp_path / "a" / "model")
  (tmp_path / "b").mkdir()
  cwd = [tmp_path / "a", tmp_path / "b"]
  done = experiment(2, tmp_path / "run", "model", cwd=cwd).end()
  for code, _, err in done:
    assert code == 2 and "process 1 (" in err and "no such folder" in err, err


@pytest.mark.long
def test_run_directory_must_be_shared(tiny_folder, tmp_path):
  cwd = [tmp_path / "a", tmp_path / "b"]
  for folder in cwd:
    folder.mkdir()
  done = experiment(2, "run", tiny_folder, cwd=cwd, timeout=20).end()
  for code, _, err in done:
    assert code == 2 and "process 1 (" in err, err
    assert "file system that all hosts share" in err


# --- hosts that hang ----------------------------------------------------------

ALL_GONE = "another process is gone"
# Who goes missing, how, in what the others wait, and what they say of it. JAX
# aborts a process that waits in C++ when another is silent for 10 s.
LOSSES = [
  (1, "killed", "sums", "metrics of update 7: another process is gone"),
  (0, "killed", "sums", "metrics of update 7: another process is gone"),
  (1, "killed", "work", ALL_GONE),
  (0, "killed", "value", "gate.json"),
  (1, "stopped", "barrier", "end of the export"),
  (0, "stopped", "value", "gate.json"),
  (1, "hangs", "sums", "metrics of update 7: not there within 4 s"),
  (1, "hangs", "agree", "the plan: process 1 did not answer within 4 s"),
  (1, "hangs", "barrier", "'end of the export': not all of"),
  (1, "slow", "sums", ""),
]


def start_losses(count, losses):
  """Starts so many processes for each loss, all at once."""
  env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": QUICK}
  started = []
  for lost, how, what, message in losses:
    port = free_port()
    ranks = [
      fork_server.start(
        "tests.support.lost_worker",
        [rank, count, port, lost, how, what],
        env | caching(),
      )
      for rank in range(count)
    ]
    started.append((ranks, lost, how, what, message))
  return started


@pytest.mark.long
@pytest.mark.parametrize("count", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_lost_process_ends_the_others_by_name(count):
  """F21: code 74 and one line, in whatever way JAX says that one is gone."""
  started = start_losses(count, LOSSES)
  try:
    for ranks, lost, how, what, message in started:
      for rank, process in enumerate(ranks):
        case = (count, rank, lost, how, what)
        if how == "slow":
          assert process.wait(HANGS) == 0, (case, process.communicate())
        elif rank != lost:
          assert process.wait(HANGS) == processes.MACHINE, case
          _, err = process.communicate()
          last = err.strip().splitlines()[-1]
          assert last.startswith("error: "), (case, err)
          # Those that JAX ended since a third one left do not wait for it.
          assert message in last or (count > 2 and ALL_GONE in last), case
          assert "Traceback" not in err, (case, err)
  finally:
    for ranks, *_ in started:
      for process in ranks:
        process.kill()
        process.wait()


@pytest.mark.long
def test_processes_that_never_meet_end_by_name(tiny_folder, tmp_path):
  """Each alone waits for the other: the first, whom all ask, and the second."""
  flags = "--multihost", "--timeout=5", "--num_processes=2"
  alone = [
    start(
      tmp_path / str(rank),
      tiny_folder,
      *flags,
      f"--process_id={rank}",
      f"--coordinator=127.0.0.1:{free_port()}",
    )
    for rank in range(2)
  ]
  for process in alone:
    _, err = process.communicate(timeout=HANGS)
    assert process.returncode == processes.MACHINE, err
    last = err.strip().splitlines()[-1]
    assert "the processes did not meet within 5 s" in last


def test_a_loss_is_told_from_bad_input():
  def loss(error):
    return lost_processes.is_loss(error)

  gloo = ValueError(
    "UNKNOWN: Gloo all-reduce failed: [external/gloo/gloo/transport/tcp/pair.cc"
    ":538] Read error [127.0.0.1]:13235: Connection reset by peer"
  )
  assert loss(gloo)
  nccl = jax.errors.JaxRuntimeError("INTERNAL: NCCL operation ncclAllReduce")
  assert loss(nccl)
  try:
    try:
      raise gloo
    except ValueError as e:
      raise ConfigError("checkpoint 2 cannot be read") from e
  except ConfigError as e:
    assert loss(e)
  assert not loss(ConfigError("hub: Connection refused by peer"))
  assert not loss(ValueError("INTERNAL: no such thing"))
  assert not loss(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory"))


def test_differences_name_process_host_and_field():
  def facts(host, **values):
    return {"host": host, "facts": values}

  differ = processes._differences
  assert not differ([facts("a", x=1), facts("b", x=1)])
  (one,) = differ([facts("a", x=1), facts("b", x=1), facts("c", x=2, y=3)])[:1]
  assert one == "x is 1 in process 0 (a), 2 in process 2 (c)"
  assert differ([facts("a", error="no"), facts("b", error="no")]) == ["no"]
  assert differ([facts("a", x=1), facts("b", error="no")]) == [
    "process 1 (b): no"
  ]


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--num_processes=2"], "--num_processes: only with --multihost"),
    (
      ["--multihost", "--timeout=3", "--num_processes=2", "--process_id=0"],
      "give --coordinator, --num_processes and --process_id",
    ),
  ],
)
def test_processes_that_cannot_meet(flags, message, tiny_folder, tmp_path):
  code, _, err = run(tmp_path, tiny_folder, *flags)
  assert code == 2 and message in err
