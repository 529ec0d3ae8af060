"""Two real processes over gloo give what one process gives."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICK

HERE = Path(__file__).parent


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
        str(HERE / script),
        *map(str, (rank, count, port, *args)),
      ],
      env={**inherited, "PYTHONPATH": f"{HERE}:{HERE.parent}", **env},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for rank in range(count)
  ]
  try:
    done = [w.communicate(timeout=300) for w in workers]
  finally:
    for w in workers:
      w.kill()
  for w, (_, err) in zip(workers, done, strict=True):
    assert w.returncode == 0, err
  return [out for out, _ in done]


def run(count: int, folder: Path) -> list:
  printed = run_workers("multiprocess_worker.py", count, folder, QUICK=QUICK)
  return [json.loads(out.splitlines()[-1]) for out in printed]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_equal_one(tmp_path):
  first, second = run(2, tmp_path / "two")
  (alone,) = run(1, tmp_path / "one")
  assert first == second
  for ours, theirs in zip(first, alone, strict=True):
    assert ours["restored"] and theirs["restored"]
    assert ours["samples"] == theirs["samples"]
    assert ours["exported"] == theirs["exported"]
    same, files, _ = ours["exported"]
    assert same and files > 1
    for a, b in zip(ours["metrics"], theirs["metrics"], strict=True):
      assert a == pytest.approx(b, rel=1e-5)
