"""Two real processes over gloo give what one process gives."""

import json
from pathlib import Path

import pytest
from conftest import QUICK
from workers import run_workers


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
