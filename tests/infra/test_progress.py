"""What a stage says of itself without a terminal."""

import pytest

from bct_jax.infra import progress


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
