"""The launch scripts: exact commands, a fake gcloud, and a real Slurm."""

import contextlib
import os
import pty
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pytest
import yaml
from conftest import QUICK
from runs import ROOT, caching_apart, comparable, wait_until, without_torch
from workers import free_port

LAUNCH = ROOT / "launch"
CLEAN = {
  k: v
  for k, v in os.environ.items()
  if not k.startswith(("SLURM", "BCT_JAX", "JAX_", "XLA_"))
}


def bash(script, *arguments, path=None, **env):
  if path is not None:
    env["PATH"] = f"{path}:{CLEAN['PATH']}"
  return subprocess.run(
    ["bash", str(LAUNCH / script), *arguments],
    cwd=ROOT,
    env={**CLEAN, **env},
    capture_output=True,
    text=True,
    timeout=60,
  )


# --- Slurm --------------------------------------------------------------------


def srun(*arguments, **env):
  done = bash("slurm.sbatch", "--dry_run", *arguments, **env)
  assert done.returncode == 0, done.stderr
  return done.stdout.splitlines()


def test_slurm_dry_run():
  (line,) = srun("--config=configs/tiny.py", "--workdir=runs/a b")
  assert shlex.split(line) == [
    *("srun", "--kill-on-bad-exit=0", "--wait=60", "--label"),
    *(f"{ROOT}/.venv/bin/python", "-m", "bct_jax.main"),
    *("--workdir=runs/a b", "--config=configs/tiny.py"),
  ]


def test_slurm_one_process_per_gpu_or_per_node():
  gpus = {"SLURM_JOB_ID": "7", "SLURM_GPUS_ON_NODE": "4"}
  line, *_ = srun(
    "--workdir=r", SLURM_NTASKS="8", SLURM_NTASKS_PER_NODE="4", **gpus
  )
  assert "--multihost --num_processes=8" in line
  # JAX would give the only process of a node its first GPU alone.
  export, line = srun(
    "--workdir=r", SLURM_NTASKS="2", SLURM_NTASKS_PER_NODE="1", **gpus
  )
  assert export == "export JAX_LOCAL_DEVICE_IDS=0,1,2,3"
  assert "--multihost --num_processes=2" in line


def test_slurm_array_over_cells(tmp_path):
  cells = tmp_path / "cells.txt"
  cells.write_text("--config.optim.lr=1e-5\n--config.optim.lr=1e-4 --x=2\n")
  env = {"SLURM_ARRAY_TASK_ID": "2", "CELLS": str(cells)}
  (line,) = srun("--config=c.py", "--workdir=runs/s", **env)
  assert shlex.split(line)[-4:] == [
    *("--workdir=runs/s/2", "--config=c.py"),
    *("--config.optim.lr=1e-4", "--x=2"),
  ]
  done = bash(
    "slurm.sbatch",
    *("--dry_run", "--workdir=r"),
    **{**env, "SLURM_ARRAY_TASK_ID": "3"},
  )
  assert done.returncode == 2 and "has no line 3" in done.stderr


@pytest.mark.parametrize(
  ("script", "arguments", "env", "message"),
  [
    ("slurm.sbatch", ["--dry_run"], {}, "--workdir=DIR is needed"),
    ("slurm.sbatch", ["--workdir=r"], {}, "this is a job: sbatch"),
    (
      *("slurm.sbatch", ["--dry_run", "--workdir=r"]),
      *({"BCT_JAX_ROOT": "/tmp"}, "/tmp is not the checkout"),
    ),
    ("tpu_pod.sh", ["--dry_run"], {}, "TPU: name of the slice"),
    (
      *("tpu_pod.sh", ["--dry_run"]),
      *({"TPU": "a", "ZONE": "b"}, "--workdir=DIR is needed"),
    ),
    ("gke_jobset.sh", ["--dry_run"], {"NAME": "A_b"}, "lower case letters"),
    (
      *("gke_jobset.sh", ["--dry_run", "--workdir=runs/x"]),
      {"NAME": "a", "IMAGE": "i", "CLAIM": "c"},
      "--workdir=/data/DIR is needed",
    ),
  ],
)
def test_what_is_missing_is_said(script, arguments, env, message):
  done = bash(script, *arguments, **env)
  assert done.returncode != 0 and message in done.stderr


SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
KillWait=5
SchedulerParameters=sched_interval=1,batch_sched_delay=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm():
  """A cluster of this machine alone; gives the environment of its commands."""
  names = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "runuser")
  lacking = [n for n in names if shutil.which(n) is None]
  if lacking:
    pytest.skip(f"apt install slurm-wlm munge: {', '.join(lacking)} not found")
  if os.geteuid() != 0:
    pytest.skip("the daemons of Slurm need root")
  with contextlib.ExitStack() as stack:
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)  # munged runs as another user
    for name in ("munge", "state", "spool"):
      (folder / name).mkdir()
    (folder / "munge" / "key").write_bytes(os.urandom(1024))
    for path in (folder / "munge" / "key", folder / "munge"):
      path.chmod(0o755 if path.is_dir() else 0o600)
      shutil.chown(path, "munge")
    conf = folder / "slurm.conf"
    ports = (free_port(), free_port())
    conf.write_text(
      SLURM_CONF.format(
        host=socket.gethostname().split(".")[0], folder=folder, ports=ports
      )
    )
    env = {**CLEAN, "SLURM_CONF": str(conf)}
    munge = folder / "munge"
    for command in (
      [
        *("runuser", "-u", "munge", "--", "munged", "--foreground"),
        *(f"--socket={munge}/socket", f"--key-file={munge}/key"),
        *(f"--pid-file={munge}/pid", f"--log-file={munge}/log"),
        f"--seed-file={munge}/seed",
      ],
      ["slurmctld", "-D"],
      ["slurmd", "-D"],
    ):
      with open(folder / f"{command[0]}.out", "w") as out:
        daemon = subprocess.Popen(
          command, env=env, cwd=folder, stdout=out, stderr=out
        )
      stack.callback(daemon.wait)
      stack.callback(daemon.terminate)
      time.sleep(1)
    yield env, folder


def ask(env, *command):
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  return done.stdout.strip()


@pytest.mark.slow
def test_real_slurm_requeues_what_was_stopped(
  slurm, finished, tiny_folder, tmp_path
):
  """Two tasks, SIGTERM in the first arm, requeued, and the same numbers."""
  env, folder = slurm
  workdir, log = tmp_path / "run", tmp_path / "job.log"
  env |= caching_apart(tmp_path) | without_torch()
  env |= {
    "BCT_JAX_VENV": str(Path(sys.executable).parent.parent),
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2" + QUICK,
  }
  job = subprocess.run(
    [
      *("sbatch", "--parsable", "--ntasks=2", "--ntasks-per-node=2"),
      *(f"--output={log}", "launch/slurm.sbatch", "--config=configs/tiny.py"),
      *(f"--config.model.path={tiny_folder}", f"--workdir={workdir}"),
    ],
    cwd=ROOT,
    env=env,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.strip()

  def state():
    return ask(env, "squeue", "--noheader", f"--job={job}", "--format=%T")

  def told():
    said = log.read_text() if log.exists() else "no log"
    return f"{said}\n{ask(env, 'scontrol', 'show', 'job', job)}"

  evals = workdir / "arms" / "low" / "evals.jsonl"
  wait_until(told, lambda: evals.exists() or not state())
  ask(env, "scancel", "--signal=TERM", job)
  # A job that is requeued has no state for a moment.
  wait_until(told, lambda: state() == "PENDING")
  assert "Exited with exit code 75" in told() and "requeued" in told()
  assert not (workdir / "result.json").exists()

  # Slurm waits for two minutes; the test does not. But a node starts nothing of
  # a job in the second in which it stopped it ("Job credential revoked").
  time.sleep(5)

  def done():
    # Said again for as long as it waits: said while the job is being requeued,
    # it may be overwritten.
    now = state()
    if now == "PENDING":
      ask(env, "scontrol", "update", f"JobId={job}", "StartTime=now")
    return not now or (workdir / "result.json").exists()

  wait_until(told, done)
  assert (workdir / "result.json").exists(), told()
  wait_until(told, lambda: state() in ("", "COMPLETED", "FAILED"))
  assert "low: continuing at step" in told() and "integrity unknown" in told()
  assert comparable(workdir, False) == comparable(finished[0], False)


# --- Cloud TPU ----------------------------------------------------------------

GCLOUD = r"""#!/usr/bin/env bash
# Hosts are folders, ssh runs the command in one.
# One write: several of these run at a time.
line="$(printf '%q ' "$@")"; printf '%s\n' "$line" >>"$HOSTS/calls"
case " $* " in
  *" queued-resources describe "*"--format="*) echo ACTIVE ;;
  *" queued-resources describe "*) exit 1 ;;
  *" tpu-vm describe "*) echo 3 ;;
  *" --worker=all "*"kill"*)
    for file in "$HOSTS"/*/bct_jax_run/pid; do
      kill -TERM "$(cat "$file")"
    done ;;
  *" tpu-vm ssh "*" --worker=all "*) ;;
  *" tpu-vm ssh "*)
    for a in "$@"; do
      case "$a" in
        --worker=*) host="${a#*=}" ;;
        --command=*) command="${a#*=}" ;;
      esac
    done
    cd "$HOSTS/$host" && HOST="$host" exec bash -c "$command" ;;
esac
"""
PYTHON = """#!/usr/bin/env bash
trap 'kill $!; echo saved; exit 75' TERM
echo "host $HOST: $* [$LIBTPU_INIT_ARGS]"
code="CODE_$HOST"
if [[ "${!code:-}" == wait ]]; then sleep 60 & touch ready; wait; fi
exit "${!code:-0}"
"""


@pytest.fixture
def tpu(tmp_path):
  """Environment of tpu_pod.sh with three hosts, and their folder."""
  hosts, bin_folder = tmp_path / "hosts", tmp_path / "bin"
  bin_folder.mkdir()
  scripts = [(bin_folder / "gcloud", GCLOUD)]
  for host in range(3):
    folder = hosts / str(host) / "bct_jax_run" / ".venv" / "bin"
    folder.mkdir(parents=True)
    scripts.append((folder / "python", PYTHON))
  for path, text in scripts:
    path.write_text(text)
    path.chmod(0o755)
  env = {
    **{"TPU": "pod", "ZONE": "z", "HOSTS": str(hosts)},
    **{"LOGS": str(tmp_path / "logs"), "TPU_FLAGS": "--a=1 --b=2"},
  }
  return {**env, "path": bin_folder}, hosts


FLAGS = ("--config=configs/tiny.py", "--workdir=/mnt/a b")


def test_tpu_pod_runs_every_host_with_a_log_each(tpu, tmp_path):
  env, hosts = tpu
  done = bash("tpu_pod.sh", *FLAGS, **env, TYPE="v5litepod-16")
  assert done.returncode == 0, done.stderr
  for host in range(3):
    assert (tmp_path / "logs" / f"worker_{host}.log").read_text() == (
      f"host {host}: -m bct_jax.main --multihost --num_processes=3 "
      "--config=configs/tiny.py --workdir=/mnt/a b [--a=1 --b=2]\n"
    )
  calls = (hosts / "calls").read_text()
  assert "--accelerator-type=v5litepod-16" in calls
  with tarfile.open(tmp_path / "logs" / "bct_jax.tar.gz") as archive:
    sent = {name.removeprefix("./") for name in archive.getnames()}
  assert {"setup.py", "launch/venv.sh", "bct_jax/main.py"} <= sent
  # Environments and caches, which other processes may be writing.
  assert not [n for n in sent if n[:1] == "." != n or "__pycache__" in n]


@pytest.mark.parametrize(
  ("codes", "expected"),
  [
    ({"CODE_1": "3"}, 3),
    ({"CODE_0": "75", "CODE_1": "75", "CODE_2": "75"}, 75),
    ({"CODE_0": "75", "CODE_2": "1"}, 1),
    ({"CODE_0": "1", "CODE_2": "75"}, 1),
  ],
)
def test_tpu_pod_fails_if_a_host_fails(codes, expected, tpu):
  env, _ = tpu
  done = bash("tpu_pod.sh", *FLAGS, **env, **codes)
  assert done.returncode == expected
  assert "host 1: -m bct_jax.main" in done.stderr or "CODE_1" not in codes


def test_tpu_pod_passes_a_signal_on(tpu, tmp_path):
  env, hosts = tpu
  path = env.pop("path")
  process = subprocess.Popen(
    ["bash", str(LAUNCH / "tpu_pod.sh"), *FLAGS],
    env={
      **{**CLEAN, **env, "PATH": f"{path}:{CLEAN['PATH']}"},
      **{f"CODE_{host}": "wait" for host in range(3)},
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  wait_until("hosts", lambda: len(list(hosts.glob("*/*/ready"))) == 3)
  process.send_signal(signal.SIGTERM)
  _, err = process.communicate(timeout=30)
  assert process.returncode == 75, err
  for host in range(3):
    log = tmp_path / "logs" / f"worker_{host}.log"
    assert log.read_text().endswith("saved\n")


def test_tpu_pod_dry_run_is_what_is_run(tpu):
  env, hosts = tpu
  done = bash("tpu_pod.sh", "--dry_run", *FLAGS, **env, WORKERS="3")
  assert done.returncode == 0 and not (hosts / "calls").exists()
  assert bash("tpu_pod.sh", *FLAGS, **env).returncode == 0
  calls = (hosts / "calls").read_text().splitlines()
  asked = [
    shlex.split(line)[1:]
    for line in done.stdout.splitlines()
    if line.startswith("gcloud")
  ]
  ran = [c for c in map(shlex.split, calls) if "describe" not in c]
  assert sorted(asked) == sorted(ran)


# --- GKE ----------------------------------------------------------------------


def jobset(*arguments, **env):
  env = {"NAME": "lr3", "IMAGE": "i", "CLAIM": "shared", **env}
  done = bash("gke_jobset.sh", "--dry_run", *arguments, **env)
  assert done.returncode == 0, done.stderr
  assert done.stdout.endswith(
    "kubectl --namespace=default apply --filename=-\n"
  )
  return yaml.safe_load(done.stdout)


def test_gke_jobset_of_tpus():
  flags = ["--workdir=/data/r", '--config.name=a "b" \\ c: #1']
  spec = jobset(*flags, TPU_TOPOLOGY="4x8", HOSTS="8")["spec"]
  assert spec["failurePolicy"]["maxRestarts"] == 100
  (rule,) = spec["failurePolicy"]["rules"]
  # As the validation of JobSet has it.
  assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
  (job,) = spec["replicatedJobs"]
  job = job["template"]["spec"]
  assert job["parallelism"] == job["completions"] == 8
  (rule,) = job["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["values"] == [2, 3, 5]  # 75 starts it again
  pod = job["template"]["spec"]
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x8",
  }
  (container,) = pod["containers"]
  assert container["command"] == [
    *("python", "-m", "bct_jax.main", "--multihost", "--num_processes=8"),
    *flags,
  ]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}


def test_gke_jobset_on_an_object_store_needs_no_claim():
  spec = jobset("--workdir=gs://bucket/r", CLAIM="")["spec"]
  pod = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  assert "volumes" not in pod and "volumeMounts" not in container
  assert {"name": "BCT_JAX_CACHE", "value": "/tmp/bct_jax"} in container["env"]


def test_gke_jobset_of_gpus_names_the_processes():
  spec = jobset("--workdir=/data/r", KIND="gpu", CHIPS="8")["spec"]
  pod = spec["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  env = {e["name"]: e.get("value") for e in container["env"]}
  assert env["BCT_JAX_COORDINATOR"] == "lr3-run-0-0.lr3:8476"
  assert "BCT_JAX_PROCESS_ID" in env
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}


def test_gke_applies_what_it_shows(tmp_path):
  kubectl = tmp_path / "kubectl"
  kubectl.write_text('#!/bin/sh\necho "$@"; [ "$2" != apply ] || cat\n')
  kubectl.chmod(0o755)
  env = {"NAME": "a", "IMAGE": "i", "CLAIM": "c", "path": tmp_path}
  shown = bash("gke_jobset.sh", "--dry_run", "--workdir=/data/r", **env)
  done = bash("gke_jobset.sh", "--workdir=/data/r", **env)
  assert done.stdout.splitlines()[1:] == shown.stdout.splitlines()[:-1]
  for action, said in (
    ("--delete", "--namespace=default delete jobset a"),
    ("--list", "--namespace=default get jobsets,pods"),
    ("--logs", "--namespace=default logs --follow"),
  ):
    assert bash("gke_jobset.sh", action, **env).stdout.startswith(said)


LOGGED = """
source launch/venv.sh
run_logged "$1/log" "installing it" bash -c "echo pip says a lot; $2"
"""


def _run_logged(folder, ending):
  return subprocess.run(
    ["bash", "-c", LOGGED, "bash", str(folder), ending],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_what_pip_prints_is_in_a_file(tmp_path):
  done = _run_logged(tmp_path, "true")
  assert done.returncode == 0 and done.stderr == ""
  assert done.stdout == f"installing it (log: {tmp_path}/log)\n"  # no spinner
  assert "pip says a lot" in (tmp_path / "log").read_text()
  failed = _run_logged(tmp_path, "echo no space >&2; exit 3")
  assert failed.returncode == 3 and "no space" in failed.stderr
  assert "exit code 3" in failed.stderr and "log" in failed.stderr


def test_a_line_turns_on_a_terminal(tmp_path):
  leader, follower = pty.openpty()
  process = subprocess.Popen(
    ["bash", "-c", LOGGED, "bash", str(tmp_path), "sleep 0.7"],
    cwd=ROOT,
    stdin=follower,
    stdout=follower,
    stderr=follower,
  )
  os.close(follower)
  said = b""
  with contextlib.suppress(OSError):  # as Linux ends it
    while part := os.read(leader, 1000):
      said += part
  os.close(leader)
  assert process.wait() == 0
  assert said.count(b"installing it") > 2 and b"\r| installing" in said
  assert b"pip says" not in said and said.endswith(b"/log)\r\n")
