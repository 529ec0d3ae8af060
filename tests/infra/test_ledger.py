"""Folders whose files are remembered, under every failing operation."""

import builtins
import errno
import os
import shutil
from pathlib import Path

import pytest
from cases import long_but

from bct_jax.infra import done_file, files, ledger

STEPS = 2


def said(lines=None):
  return (lines if lines is not None else []).append


def train(folder: Path) -> None:
  """Writes what an arm writes, or goes on with it, in the same order.

  A checkpoint is a file here: what Orbax does is tested with Orbax.
  """
  ledger.track(folder, "remove the arm", said())
  ledger.check_folder(folder, ("weights.json",))
  files.write_json(folder / "weights.json", {"lora": None})
  checkpoint = folder / "checkpoints" / "step"
  begun = int(checkpoint.read_text()) if checkpoint.exists() else 0
  files.drop_after(folder / "metrics.jsonl", begun)
  files.drop_after(folder / "evals.jsonl", begun)
  for step in range(begun, STEPS + 1):
    if step > begun:
      for half in "ab":
        row = {"step": step, "half": half}
        files.append_line(folder / "metrics.jsonl", row, sync=False)
      files.sync_lines(folder / "metrics.jsonl")
      checkpoint.parent.mkdir(exist_ok=True)
      save(checkpoint, str(step))
    evals = files.read_lines(folder / "evals.jsonl")
    if step not in [x["step"] for x in evals]:
      path = folder / "rollouts" / f"step_{step}.jsonl"
      files.write_lines(path, [{"text": f"{step}"}] * 3)
      files.insert_line(folder / "evals.jsonl", {"step": step})
    drawn = folder / "train_rollouts" / "draw.jsonl"
    files.write_lines(drawn, [{"step": step}])
    files.delete(drawn)
  files.write_json(folder / "done.json", result(folder))


def save(path: Path, text: str) -> None:
  temporary = path.with_suffix(".tmp")
  temporary.write_text(text)
  os.rename(temporary, path)


def result(folder: Path) -> dict:
  names = ("metrics.jsonl", "evals.jsonl", f"rollouts/step_{STEPS}.jsonl")
  return {name: files.read_lines(folder / name) for name in names}


def contents(folder: Path) -> dict[str, bytes]:
  """All that lasts; the ledger may have lines more after a kill."""
  return {
    p.relative_to(folder).as_posix(): p.read_bytes()
    for p in folder.rglob("*")
    if p.is_file() and not p.name.endswith(".tmp") and p.name != ledger.NAME
  }


class Killed(BaseException):
  """What is raised cannot be: the process is gone, and cleans nothing up."""


class Disk:
  """Counts operations on files and fails one; after a kill, all."""

  def __init__(self, patch, at: int | None = None, how: int | None = None):
    self.count, self.at, self.how, self.dead = 0, at, how, False
    opened = builtins.open

    def wrap(function):
      def call(*args, **kwargs):
        self.operate()
        return function(*args, **kwargs)

      return call

    def open_file(path, mode="r", **kwargs):
      self.operate()
      file = opened(path, mode, **kwargs)
      if "a" not in mode and "w" not in mode:
        return file
      write = file.write

      def write_part(content):
        try:
          self.operate()
        except BaseException:
          write(content[: len(content) // 2])  # half of it is on the disk
          file.flush()
          raise
        return write(content)

      return Wrapped(file, write_part)

    patch.setattr(os, "replace", wrap(os.replace))
    patch.setattr(os, "fsync", wrap(os.fsync))
    patch.setattr(Path, "unlink", wrap(Path.unlink))
    for module in (files, ledger):
      patch.setattr(module, "open", open_file, raising=False)

  def operate(self) -> None:
    if self.dead:
      raise Killed
    self.count += 1
    if self.count - 1 == self.at:
      if self.how is None:
        self.dead = True
        raise Killed
      raise OSError(self.how, os.strerror(self.how))


class Wrapped:
  def __init__(self, file, write):
    self._file, self.write = file, write

  def __getattr__(self, name):
    return getattr(self._file, name)

  def __enter__(self):
    return self

  def __exit__(self, *args):
    self._file.close()


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
  """Flushing takes long, and what it is for cannot be tested here."""
  monkeypatch.setattr(os, "fsync", lambda number: None)


@pytest.fixture
def whole(tmp_path, monkeypatch):
  """An arm that nothing happened to, and how many operations it took."""
  folder = tmp_path / "whole" / "arm"
  folder.mkdir(parents=True)
  with monkeypatch.context() as patch:
    disk = Disk(patch)
    train(folder)
  ledger.forget(folder)
  return folder, disk.count


@pytest.mark.long
@pytest.mark.parametrize(
  "how",
  long_but([None, errno.ENOSPC], [None, errno.ENOSPC, errno.EIO, errno.EROFS]),
)
def test_each_operation_that_fails_once_changes_nothing(
  how, whole, tmp_path, monkeypatch
):
  """In the manner of SQLite's tests; None kills the process there."""
  right, count = whole
  assert count > 90
  for at in range(count):
    folder = tmp_path / "failing" / "arm"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    with monkeypatch.context() as patch:
      Disk(patch, at, how)
      with pytest.raises(Killed if how is None else OSError):
        train(folder)
    for name, content in contents(folder).items():
      assert content or name == "metrics.jsonl", (at, name)
    ledger.forget(folder)
    train(folder)  # refuses nothing that it finds
    ledger.forget(folder)
    assert contents(folder) == contents(right), at
    assert not ledger.Ledger(folder).find_damage(), at


DAMAGES = {
  "truncated": lambda data: data[: len(data) // 2],
  "emptied": lambda data: b"",
  "a byte": lambda data: bytes([data[0] ^ 1]) + data[1:],
  "a key": lambda data: data.replace(b'"step"', b'"stop"', 1),
  "replaced": lambda data: b'{"step": 1}\n',
  "deleted": lambda data: None,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_each_damage_of_a_file_that_was_written_is_found(how, whole):
  folder, _ = whole
  before = contents(folder)
  for name, data in before.items():
    damaged = DAMAGES[how](data)
    if name.startswith("checkpoints") or damaged == data:
      continue
    path = folder / name
    if damaged is None:
      path.unlink()
    else:
      path.write_bytes(damaged)
    found = ledger.Ledger(folder).find_damage()
    # The newest line may be of a file that a kill kept from being written.
    newest = name == "done.json" and damaged is None
    assert set(found) == (set() if newest else {name}), (name, found)
    path.write_bytes(data)
  assert not ledger.Ledger(folder).find_damage()


def test_a_damaged_read_is_refused_with_what_helps(whole):
  folder, _ = whole
  ledger.track(folder, "remove the arm", said())
  path = folder / "evals.jsonl"
  path.unlink()
  with pytest.raises(
    ledger.DamagedFile, match=r"evals.jsonl is missing: restore it, or remove"
  ):
    files.read_lines(path)
  ledger.forget(folder)
  assert files.read_lines(path) == []  # a folder that nobody tracks


def test_what_this_command_would_write_mends_a_file(tmp_path):
  ledger.track(tmp_path, "x", said())
  path = tmp_path / "config.json"
  files.write_json(path, {"lr": 1})
  files.write_json(tmp_path / "env.json", {})
  path.write_text("{")
  with pytest.raises(ledger.DamagedFile, match="config.json has 1 bytes"):
    files.read_json_or_same(path, {"lr": 2})
  assert files.read_json_or_same(path, {"lr": 1}) == {"lr": 1}
  assert files.read_json(path) == {"lr": 1}
  ledger.forget(tmp_path)


def test_a_damaged_ledger_and_an_old_folder_are_said(whole):
  folder, _ = whole
  path, lines = folder / ledger.NAME, []
  text = path.read_text()
  path.write_text(text.replace('"size"', '"site"', 1) + '{"file": "cut')
  ledger.track(folder, "x", lines.append)
  assert lines == [f"{path.resolve()}: lines [1] were changed; left out"]
  files.write_json(folder / "new.json", {})  # below the cut line
  assert ledger.Ledger(folder).newest("new.json") is not None
  path.unlink()
  ledger.forget(folder)
  ledger.track(folder, "x", lines.append)
  assert "no files.jsonl, as of an earlier version" in lines[1]
  files.read_json(folder / "done.json")  # still loads
  ledger.forget(folder)


def test_a_folder_that_is_moved_away_is_not_made_again(tmp_path):
  folder = tmp_path / "arm"
  ledger.track(folder, "x", said())
  files.write_json(folder / "weights.json", {})
  folder.rename(tmp_path / "moved")
  moved = "moved or deleted while the run was under way"
  with pytest.raises(OSError, match=moved):
    files.append_line(folder / "metrics.jsonl", {}, sync=False)
  assert not folder.exists()
  with pytest.raises(OSError, match=moved):
    files.write_json(folder / "evals.json", {})
  assert not list(folder.glob("*"))
  ledger.forget(folder)


def test_what_killed_writes_left_is_not_part_of_a_done_run(tmp_path):
  for name in ("config.json", "arms/a/done.json", "organisms/o/gate.json"):
    files.write_json(tmp_path / name, {})
  left = [tmp_path / f"{x}/.done.json.0a1b2c.tmp" for x in (".", "arms/a")]
  for path in (*left, tmp_path / "organisms/o/.gate.json.0a1b2c.tmp"):
    path.write_text("{")
  done_file.write_done(tmp_path, "o")
  assert not any(path.exists() for path in left)
  listed = files.read_json(tmp_path / "done.json")["files"]
  assert listed == ["arms/a/done.json", "config.json", "organisms/o/gate.json"]
  assert not done_file.find_damage(tmp_path)
