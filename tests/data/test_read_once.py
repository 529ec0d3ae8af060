"""Examples of several arms are read once, as long as no file changes."""

import json
import os

import pytest

from bct_jax.data import read_once


@pytest.mark.parametrize("folder", ["~", "whole"])
def test_a_changed_file_is_read_again(folder, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  path = tmp_path / "rows.jsonl"
  source = "~/rows.jsonl" if folder == "~" else str(path)
  reads = []
  whole = read_once.read_examples
  monkeypatch.setattr(
    read_once, "read_examples", lambda *a: reads.append(a) or whole(*a)
  )

  def write(answer, at):
    row = {"prompt": "Is it?", "completion": answer}
    path.write_text(json.dumps(row) + "\n")
    os.utime(path, ns=(at, at))

  def read():
    return read_once.read_examples_once(source, "train", "last", False)

  write("Yes.", 10**18)
  (first,), _ = read()
  assert read()[0] == (first,) and len(reads) == 1
  write("No..", 2 * 10**18)  # of the same size
  assert read()[0] != (first,) and len(reads) == 2
