"""Talks with the models of a run, from Python and in a terminal."""

import contextlib
import dataclasses
import json
import os
import pty
import subprocess
import sys

import pytest
from runs import ENV, ROOT, caching

from bct_jax.config import ConfigError, from_dict
from bct_jax.infra import processes
from bct_jax.infra.visible import visible
from bct_jax.modes.chat import Talk, run_chat
from bct_jax.modes.sample import run_sample
from configs import tiny

HELLO, MORE = "What is the capital of Peru?", "And of Chile?"


@pytest.fixture(scope="module")
def config(tiny_folder):
  c = tiny.get_config()
  c.model.path = str(tiny_folder)
  return from_dict(c.to_dict())


@pytest.fixture(scope="module")
def folders(finished):
  run = finished[0]
  return [run / "arms" / "low", run / "arms" / "high"]


@pytest.fixture(scope="module")
def talk(config, folders):
  return Talk(config, folders)


@pytest.mark.long
def test_answers_are_those_of_the_sample_mode(talk, config, folders, tmp_path):
  """Turn by turn, with what each model itself has said before."""
  talk.begin(None)
  first, second = talk.answer(HELLO), talk.answer(MORE)
  assert [*first] == [*second] == [*map(str, folders)]
  asked, out = tmp_path / "asked.jsonl", tmp_path / "out.jsonl"
  run_sample(config, folders, [HELLO], None, out)
  said = {}
  for row in map(json.loads, out.read_text().splitlines()):
    assert first[row["params"]].removesuffix(" [cut]") == row["text"]
    said[row["params"]] = [
      {"role": "user", "content": HELLO},
      {"role": "assistant", "content": row["text"]},
      {"role": "user", "content": MORE},
    ]
  asked.write_text(json.dumps({"messages": said[str(folders[1])]}))
  out.unlink()
  run_sample(config, folders[1:], [], asked, out)
  row = json.loads(out.read_text())
  assert second[str(folders[1])].removesuffix(" [cut]") == row["text"]
  # Greedy answers come out as they were, of the same talk.
  assert talk.answer_again() == second
  talk.begin("Be brief.")
  assert talk.answer(HELLO) != first
  talk.begin(None)
  assert talk.answer(HELLO) == first


@pytest.mark.long
def test_what_has_no_room_was_not_said(talk):
  talk.begin(None)
  with pytest.raises(ValueError, match="no answer to take back"):
    talk.answer_again()
  first = talk.answer(HELLO)
  with pytest.raises(ValueError, match="max_length|tokens"):
    talk.answer("a" * 2000)
  assert talk.answer_again() == first


@pytest.mark.long
def test_drawn_answers_differ_by_turn(config):
  sampling = dataclasses.replace(config.sampling, temperature=1.0)
  hot = dataclasses.replace(config, sampling=sampling)
  talk = Talk(hot, [])
  (first,), (again,) = talk.answer(HELLO).values(), talk.answer_again().values()
  assert first != again


def test_it_talks_with_one_process(config, monkeypatch):
  monkeypatch.setattr(processes, "count", lambda: 2)
  with pytest.raises(ConfigError, match="--mode=sample"):
    run_chat(config, [])


@pytest.mark.long
def test_a_terminal(tiny_folder, talk, folders):
  """Commands, an unknown one, an empty line, and Ctrl-D."""
  leader, follower = pty.openpty()
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "bct_jax.main", "--config=configs/tiny.py"),
      *(f"--config.model.path={tiny_folder}", "--mode=chat"),
      *(f"--params={folder}" for folder in folders),
    ],
    cwd=ROOT,
    env=ENV | caching(),
    stdin=follower,
    stdout=follower,
    stderr=subprocess.PIPE,
  )
  os.close(follower)
  lines = [HELLO, "/again", "", "/what", "a" * 2000, "/new", HELLO]
  waits, shown = [*(f"{line}\n" for line in lines), "\4"], b""
  with contextlib.suppress(OSError):  # as Linux ends it
    while part := os.read(leader, 1000):
      shown += part
      if waits and shown.endswith(b"> "):
        os.write(leader, waits.pop(0).encode())
  assert process.stderr is not None
  logged = process.stderr.read().decode()
  assert process.wait() == 0, logged
  text = shown.decode().replace("\r\n", "\n")
  talk.begin(None)
  for name, answer in talk.answer(HELLO).items():
    assert text.count(f"[{name}] {visible(answer)}\n") == 3
  assert logged.count("/system TEXT") == 2  # at the start, and after /what
  assert "not answered: " in logged and "Traceback" not in logged
