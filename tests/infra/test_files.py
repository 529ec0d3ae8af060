"""Files that are written whole or not at all."""

import os

import pytest

from bct_jax.infra import files, whole_folder


def test_a_write_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
  path = tmp_path / "folder" / "a.txt"
  files.write_text(path, "before ä\n")
  assert path.read_bytes() == "before ä\n".encode()

  def fail(*args):
    raise OSError("no room")

  for name in ("fsync", "replace"):
    with monkeypatch.context() as patch, pytest.raises(OSError, match="room"):
      patch.setattr(os, name, fail)
      files.write_text(path, "after")
  assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
  assert path.read_text("utf-8") == "before ä\n"


def test_writers_with_one_process_id_do_not_meet(tmp_path, monkeypatch):
  """As two containers may have, on a file system that they share."""
  path, replace, names = tmp_path / "a.txt", os.replace, []

  def note(source, target):
    names.append(source.name)
    if len(names) == 1:
      files.write_text(path, "of the other one")
    replace(source, target)

  monkeypatch.setattr(os, "replace", note)
  files.write_text(path, "of the first one")
  assert len(set(names)) == 2 and path.read_text() == "of the first one"


def test_formats_of_json(tmp_path):
  value = {"b": ["ä", "\ud800"], "a": 1.5}
  path = tmp_path / "a.json"
  files.write_json(path, value)
  assert path.read_bytes() == (
    b'{\n "b": [\n  "\\u00e4",\n  "\\ud800"\n ],\n "a": 1.5\n}\n'
  )
  files.write_lines(path, [value, {"c": None}])
  assert path.read_bytes() == (
    b'{"b": ["\\u00e4", "\\ud800"], "a": 1.5}\n{"c": null}\n'
  )
  whole_folder.write_json(path, {"b": ["ä"], "a": 1.5})
  assert path.read_bytes() == (
    b'{\n  "b": [\n    "\xc3\xa4"\n  ],\n  "a": 1.5\n}\n'
  )


def test_lines_are_in_order_of_steps(tmp_path):
  path = tmp_path / "a.jsonl"
  for step, name in ((0, "a"), (8, "b"), (4, "c"), (4, "d"), (9, "e")):
    files.insert_line(path, {"step": step, "name": name})
  assert [x["name"] for x in files.read_lines(path)] == [*"acdbe"]
