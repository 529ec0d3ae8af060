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


def run(count: int, folder: Path) -> list:
  port = free_port()
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  env |= {"PYTHONPATH": f"{HERE}:{HERE.parent}", "QUICK": QUICK}
  workers = [
    subprocess.Popen(
      [
        sys.executable,
        str(HERE / "multiprocess_worker.py"),
        *map(str, (rank, count, port, folder)),
      ],
      env=env,
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
  return [json.loads(out.splitlines()[-1]) for out, _ in done]


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
