"""Whole runs of configs/tiny.py through the command line."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fork_server
from conftest import COMPILED, QUICK
from fork_server import ForkedProcess

ROOT = Path(__file__).parents[2]
# Seconds after which a process hangs. Beside other work one takes ten times as
# long as on a quiet machine, and no test is about how long.
HANGS = 1800
ENV = {
  **os.environ,
  "JAX_PLATFORMS": "cpu",
  "XLA_FLAGS": "--xla_force_host_platform_device_count=4" + QUICK,
}


def start(
  workdir: Path, folder: Path, *flags: str, prefix=(), real=False, env=ENV
) -> subprocess.Popen | ForkedProcess:
  """Starts a run: forked, or `real` as a user does, with a command before."""
  argv = [
    "--config=configs/tiny.py",
    f"--config.model.path={folder}",
    f"--workdir={workdir}",
    *flags,
  ]
  if not (prefix or real):
    return fork_server.start("bct_jax.main", argv, env)
  env = {**env, **without_torch(ROOT)}
  return start_module("bct_jax.main", argv, env, prefix=prefix)


def without_torch(*paths: str | Path) -> dict[str, str]:
  """The PYTHONPATH of a process that needs no torch, with further folders."""
  hidden = Path(__file__).parent / "without_torch"
  return {"PYTHONPATH": ":".join(map(str, (hidden, *paths)))}


def start_module(module, argv, env, cwd=ROOT, prefix=()) -> subprocess.Popen:
  """Starts `python -m module argv` as a user does."""
  return subprocess.Popen(
    [*prefix, sys.executable, "-m", module, *argv],
    cwd=cwd,
    env=env,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def caching(compiled: Path = COMPILED / "runs") -> dict[str, str]:
  """Variables of a run that keeps its programs in that directory."""
  return {
    "JAX_COMPILATION_CACHE_DIR": str(compiled),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


def caching_apart(folder: Path) -> dict[str, str]:
  """The same of a run that is to be killed, which may cut what it writes."""
  compiled = Path(tempfile.mkdtemp(dir=folder))
  if (COMPILED / "runs").exists():
    for path in (COMPILED / "runs").iterdir():
      (compiled / path.name).symlink_to(path)
  return caching(compiled)


def start_to_kill(workdir: Path, folder: Path, *flags: str):
  env = ENV | caching_apart(workdir.parent)
  return start(workdir, folder, *flags, env=env)


def run(workdir: Path, folder: Path, *flags: str, real=False):
  process = start(workdir, folder, *flags, real=real, env=ENV | caching())
  out, err = process.communicate(timeout=HANGS)
  return process.returncode, out, err


def comparable(workdir: Path, exact: bool = True) -> dict:
  """result.json without the times, which are all that may differ.

  Not exact: also without the difference of log-probabilities, which is rounding
  and so depends on the devices.
  """
  result = json.loads((workdir / "result.json").read_text())
  for arm in result["arms"]:
    assert arm.pop("seconds") > 0
  if not exact:
    points = [p for arm in result["arms"] for p in arm["curve"]]
    gate = result["organism"]["gate"]
    base = [gate["base"]] if "base" in gate else []
    for record in (gate, *base, *points):
      assert 0 <= record.pop("logprob_difference") < 1e-4
  return result


def wait_until(what, happens):
  """Waits for it to happen; `what` tells why, if it does not."""
  end = time.monotonic() + HANGS
  while not happens():
    assert time.monotonic() < end, what()
    time.sleep(0.2)


def wait_for(process, workdir, pattern):
  """Waits until a running process has made a file."""
  end = time.monotonic() + HANGS
  while not list(workdir.glob(pattern)):
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < end
    time.sleep(0.01)
