"""Starts the processes of tests that need several."""

import dataclasses
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import fork_server
from conftest import QUICK
from fork_server import ForkedProcess
from runs import HANGS, ROOT, caching, start_module

SUPPORT = Path(__file__).parent


def free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def run_workers(script: str, count: int, *args, **env: str) -> list[str]:
  """What each of several processes of a script prints.

  Their arguments are the rank, how many there are, a port, and `args`.
  """
  port = free_port()
  inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  workers = [
    subprocess.Popen(
      [
        sys.executable,
        str(SUPPORT / script),
        *map(str, (rank, count, port, *args)),
      ],
      env={**inherited, "PYTHONPATH": f"{SUPPORT}:{SUPPORT.parents[1]}", **env},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(count)
  ]
  try:
    done = [w.communicate(timeout=HANGS) for w in workers]
  finally:
    for w in workers:
      w.kill()
  for w, (_, err) in zip(workers, done, strict=True):
    assert w.returncode == 0, err
  return [out for out, _ in done]


DEVICES = 4


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Processes of one command on this machine, over gloo."""

  processes: list[subprocess.Popen | ForkedProcess]

  @classmethod
  def start(
    cls,
    count,
    *flags,
    own=(),
    cwd=None,
    code=ROOT,
    timeout=120,
    kept=None,
    real=False,
    envs=None,
  ):
    """`own` are flags, `cwd` folders, `code` checkouts and `envs` variables of
    each process;
    `kept` says where programs are kept. Processes are forked, unless they run
    other code or are to be `real`: forked ones have no torch."""
    env = {
      **os.environ,
      **(kept or caching()),
      "JAX_PLATFORMS": "cpu",
      "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES // count}"
      + QUICK,
      "BCT_JAX_COORDINATOR": f"127.0.0.1:{free_port()}",
      "BCT_JAX_NUM_PROCESSES": str(count),
    }
    codes = code if isinstance(code, list) else [code] * count
    processes = []
    for i in range(count):
      argv = [
        *("--multihost", f"--config={ROOT}/configs/tiny.py"),
        *(f"--timeout={timeout}", *flags, *(own[i] if own else ())),
      ]
      at = cwd[i] if cwd else ROOT
      more = {"PYTHONPATH": str(codes[i]), "BCT_JAX_PROCESS_ID": str(i)}
      more |= envs[i] if envs else {}
      processes.append(
        fork_server.start("bct_jax.main", argv, env | more, at)
        if codes[i] == ROOT and not real
        else start_module("bct_jax.main", argv, env | more, at)
      )
    return cls(processes)

  def end(self) -> list[tuple[int, str, str]]:
    """Code, output and error output of each."""
    try:
      texts = [p.communicate(timeout=HANGS) for p in self.processes]
    finally:
      for p in self.processes:
        p.kill()
    return [
      (p.returncode, *t) for p, t in zip(self.processes, texts, strict=True)
    ]

  def wait_for(self, pattern, workdir) -> None:
    end = time.monotonic() + HANGS
    while not list(workdir.glob(pattern)):
      assert all(p.poll() is None for p in self.processes), self.end()
      assert time.monotonic() < end
      time.sleep(0.01)
