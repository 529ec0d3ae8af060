"""Files that the first process reads and writes for all processes."""

import pytest

from bct_jax.config import ConfigError
from bct_jax.infra import files, processes, shared_files
from bct_jax.infra.memory import OutOfMemory

ROW = {"step": 1}
# Each function, with what it is given after the path.
CALLS = {
  "append_line": (ROW,),
  "delete": (),
  "drop_after": (3,),
  "exists": (),
  "list_files": ("*",),
  "read_json_or_none": (),
  "read_lines": (),
  "write_json": (ROW,),
  "write_lines": ([ROW],),
  "write_text": ("text",),
}


@pytest.mark.parametrize("name", CALLS)
def test_only_the_first_process_touches_the_disk(name, tmp_path, monkeypatch):
  """Another process waits under the file's name and gets the first's value."""
  waits = []

  def answer_of_first(wait, make):
    del make
    waits.append(wait)
    return ["a", "b"]

  monkeypatch.setattr(shared_files, "run_on_first", answer_of_first)
  value = getattr(shared_files, name)(tmp_path / "file", *CALLS[name])
  assert waits == ["file"] and not list(tmp_path.iterdir())
  if name == "list_files":
    assert value == [tmp_path / "file" / x for x in "ab"]
  elif name.startswith(("read", "exists")):
    assert value == ["a", "b"]
  else:
    assert value is None


@pytest.mark.parametrize(
  ("error", "kind"),
  [
    (ConfigError("f"), ValueError),
    (FileNotFoundError("f"), OSError),
    (OutOfMemory("f"), OutOfMemory),
    (KeyError("f"), processes.ProcessError),
  ],
)
def test_an_error_of_the_first_process_has_one_exit_code_in_all(
  error, kind, monkeypatch
):
  stored = {}
  monkeypatch.setattr(processes, "count", lambda: 2)
  monkeypatch.setattr(processes, "_key", str)
  monkeypatch.setattr(processes, "_put", stored.__setitem__)
  monkeypatch.setattr(processes, "_get", lambda key, *_, **__: stored[key])

  def make():
    raise error

  with pytest.raises(type(error)):
    processes.run_on_first("file", make)
  monkeypatch.setattr(processes, "is_first", lambda: False)
  with pytest.raises(kind, match="f") as caught:
    processes.run_on_first("file", make)
  assert type(caught.value) is kind


def test_lines_that_are_not_awaited(tmp_path, monkeypatch):
  path = tmp_path / "metrics.jsonl"
  for first in (True, False):
    monkeypatch.setattr(shared_files, "is_first", lambda first=first: first)
    shared_files.append_line_unawaited(path, ROW)
  assert files.read_lines(path) == [ROW]


def test_one_process_reads_what_it_wrote(tmp_path):
  assert processes.count() == 1
  path = tmp_path / "folder" / "rows.jsonl"
  assert not shared_files.exists(path)
  assert shared_files.read_json_or_none(path) is None
  with pytest.raises(ValueError, match=r"rows\.jsonl is missing"):
    shared_files.read_json(path)
  shared_files.write_lines(path, [{"step": step} for step in range(3)])
  shared_files.append_line(path, {"step": 3})
  shared_files.drop_after(path, 1)
  assert shared_files.read_lines(path) == [{"step": 0}, {"step": 1}]
  shared_files.write_json(path.with_name("a.json"), {"a": [1]})
  assert shared_files.read_json(path.with_name("a.json")) == {"a": [1]}
  assert [p.name for p in shared_files.list_files(path.parent, "*.js*")] == [
    "a.json",
    "rows.jsonl",
  ]
  shared_files.delete(path)
  shared_files.delete(path)
  assert not path.exists()
