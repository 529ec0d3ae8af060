"""What a stage says of itself, in a terminal and without one."""

import contextlib
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest
from runs import ROOT

from bct_jax.infra import progress

STAGE = """
from bct_jax.infra import progress
with progress.stage("train low", 4, "steps") as done:
  for step in range(4):
    done(loss=f"{5 - step}.5")
    if step == 1:
      progress.log_line("low step 2: initial 97%\x1b[2J")
"""


@pytest.fixture
def clock(monkeypatch):
  """A clock that stands until it is moved."""
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  monkeypatch.setattr(progress, "_silent", False)
  return now


def test_a_stage_says_that_it_begins_how_far_it_is_and_what_is_left(
  clock, capsys
):
  with progress.stage("train low", 40, "steps") as done:
    assert capsys.readouterr().err == "train low: 40 steps to do\n"
    for _ in range(40):
      clock[0] += 4
      done(loss="1.234")
  lines = capsys.readouterr().err.splitlines()
  # A tenth is 16 seconds: a line at each, and none at the end but the last.
  assert lines[0] == ("train low: 4 of 40 steps, loss 1.234, about 2 min left")
  assert len(lines) == 10 and lines[-1] == "train low: 40 steps in 3 min"


def test_a_quick_stage_has_two_lines(clock, capsys):
  with progress.stage("eval", 100, "rows") as done:
    for _ in range(100):
      clock[0] += 0.09
      done(tokens=3)
  assert capsys.readouterr().err.splitlines() == [
    "eval: 100 rows to do",
    "eval: 100 rows in 9.0 s, 33 new tokens/s",
  ]


def test_one_step_is_not_steps(clock, capsys):
  with progress.stage("update 8 again", 1, "steps") as done:
    clock[0] += 2
    done()
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == "update 8 again: 1 step to do"
  assert lines[1] == "update 8 again: 1 step in 2.0 s"


def test_a_slow_stage_speaks_every_half_minute(clock, capsys):
  with progress.stage("train", 1000, "steps") as done:
    for _ in range(20):
      clock[0] += 10
      done()
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 1 + 6 + 1 and "18 of 1000 steps" in lines[-2]


def test_no_line_where_another_process_speaks(clock, capsys, monkeypatch):
  monkeypatch.setattr(progress, "_silent", True)
  with progress.stage("train", 4, "steps") as done:
    done(4)
  assert capsys.readouterr().err == ""


def say(*streams):
  """Runs STAGE with these streams as standard error and output."""
  err, out = streams
  command = [sys.executable, "-c", STAGE]
  return subprocess.Popen(command, cwd=ROOT, stderr=err, stdout=out)


def test_a_terminal_has_a_bar_that_lines_do_not_break():
  leader, follower = pty.openpty()
  size = struct.pack("HHHH", 24, 80, 0, 0)
  fcntl.ioctl(follower, termios.TIOCSWINSZ, size)
  process, shown = say(follower, follower), b""
  os.close(follower)
  with contextlib.suppress(OSError):  # as Linux ends it
    while part := os.read(leader, 1000):
      shown += part
  os.close(leader)
  assert process.wait() == 0
  # What a terminal shows: a return goes back to the start of its line.
  rows = [row.split("\r")[-1] for row in shown.decode().split("\r\n")]
  assert rows[0] == "low step 2: initial 97%\\x1b[2J"
  assert rows[1].startswith("train low: 100%|") and "4/4" in rows[1]
  assert "loss=2.5" in rows[1] and rows[2:] == [""]
  assert "steps to do" not in shown.decode()


def test_a_pipe_has_lines_on_standard_error_alone():
  process = say(subprocess.PIPE, subprocess.PIPE)
  out, err = process.communicate()
  first, line, last = err.decode().splitlines()
  assert out == b"" and first == "train low: 4 steps to do"
  assert line == "low step 2: initial 97%\\x1b[2J"
  assert last.startswith("train low: 4 steps in ")
