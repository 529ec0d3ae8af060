"""Machines share cells by claims, and take over those of a dead one."""

import json
import os
import signal
import subprocess
import sys

import pytest

from bct_jax.sweep import cells, claims, status
from bct_jax.sweep.claims import Claims
from configs import tiny

LEASE = 60.0


class Machine:
  """Claims of a machine with a host name and a clock of its own."""

  def __init__(self, root, monkeypatch, host, start):
    self.monkeypatch, self.host, self.now, self.stops = (
      monkeypatch,
      host,
      start,
      0,
    )
    self.claims = Claims(root, LEASE, lambda: self.now, self.stop)

  def stop(self):
    self.stops += 1

  def __getattr__(self, name):
    def call(*arguments):
      self.monkeypatch.setattr(claims.socket, "gethostname", lambda: self.host)
      return getattr(self.claims, name)(*arguments)

    return call


@pytest.fixture
def machines(tmp_path, monkeypatch):
  """Two machines whose clocks are years apart."""
  return (
    Machine(tmp_path, monkeypatch, "a", 3.0),
    Machine(tmp_path, monkeypatch, "b", 1e9),
  )


def _die(machine):
  """Lets go of what the system holds, and leaves the claims as they are."""
  for lock, _ in machine.claims._mine.values():
    lock.release()


def test_a_claim_is_one_machines_until_it_is_given_back(machines):
  a, b = machines
  assert a.take(["x", "y"]) and not b.take(["x", "y"]) and b.take(["z"])
  a.release("x")
  assert b.take(["x", "y"]) and not a.take(["x", "y"])


def test_a_silent_machine_is_taken_over_by_the_other_ones_clock(
  machines, capsys
):
  a, b = machines
  assert a.take(["x"])
  _die(a)
  assert not b.take(["x"])  # whether it is alive is not known yet
  b.now += LEASE - 1
  assert not b.take(["x"])
  a.beat()  # it was only slow
  b.now += 1
  assert not b.take(["x"])
  b.now += LEASE
  assert b.take(["x"])
  assert (
    f"taken over from process {os.getpid()} on a" in capsys.readouterr().err
  )
  # It wakes up, and finds that its claim is gone.
  assert not a.stops
  a.beat()
  assert (
    a.stops == 1 and "taken over by another machine" in capsys.readouterr().err
  )
  a.release("x")
  assert not a.take(["x"])  # the claim of b is not touched


def test_a_machine_whose_lock_never_goes_is_taken_over(machines):
  """As of a dead client of a network disk, whose server keeps the lock."""
  a, b = machines
  assert a.take(["x"]) and not b.take(["x"])
  b.now += LEASE
  assert b.take(["x"])


def test_claims_are_renewed_in_a_thread(tmp_path):
  made = Claims(tmp_path, 0.3)
  made.take(["x"])
  path = tmp_path / claims.FOLDER / "x.json"
  first = path.read_text()
  with made.beating():
    for _ in range(200):
      if path.read_text() != first:
        break
      claims.time.sleep(0.05)
  assert json.loads(path.read_text())["beat"] > json.loads(first)["beat"]


def test_a_killed_process_of_this_machine_is_known_at_once(tmp_path):
  code = (
    "import pathlib, sys, time\n"
    "from bct_jax.sweep.claims import Claims\n"
    f"claims = Claims(pathlib.Path({str(tmp_path)!r}), 9999)\n"
    "print(claims.take(['x']), flush=True)\n"
    "time.sleep(600)\n"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
  )
  assert process.stdout is not None
  assert process.stdout.readline() == "True\n"
  ours = Claims(tmp_path, 9999)
  assert not ours.take(["x"])
  process.send_signal(signal.SIGKILL)
  process.communicate()
  assert ours.take(["x"])


def test_status_says_how_far_each_cell_is(tmp_path):
  c = tiny.get_config()
  c.arms = {}
  lrs = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
  made = cells.make_cells(c.to_dict(), cells.values("optim.lr", *lrs))
  assert status.status_text(made, tmp_path / "none").endswith(
    "5 cells: 5 waits"
  )

  def write(cell, name, value):
    path = tmp_path / "cells" / cell.name / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\n")

  done, running, failed, stopped, _ = made
  write(done, "done.json", {})
  write(done, "result.json", {"arms": [{"verdict": "retained"}]})
  Claims(tmp_path, LEASE).take([running.name])
  metrics = f"arms/{running.name}/metrics.jsonl"
  write(running, metrics, {"step": 3})
  write(failed, "error.json", {"error": "the gate failed"})
  write(stopped, "env.json", {})
  lines = status.status_text(made, tmp_path).splitlines()
  assert [line.split()[1] for line in lines[:5]] == [
    *("done", "running", "failed", "stopped", "waits")
  ]
  assert "update 3 of 4, process" in lines[1] and "gate failed" in lines[2]
  assert lines[-1] == (
    "5 cells: 1 running, 1 failed, 1 stopped, 1 waits, 1 done"
  )
  # A damaged cell hides no other.
  for damage in ('{"arms"', '{"x": 1}', '{"arms": []}', "3"):
    (tmp_path / "cells" / done.name / "result.json").write_text(damage)
    first, *rest, last = status.status_text(made, tmp_path).splitlines()
    assert first.split()[1] == "damaged" and str(tmp_path) in first
    assert rest == lines[1:5] and "1 damaged" in last
