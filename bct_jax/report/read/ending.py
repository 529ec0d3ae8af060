"""What the last files of a run say of it: done, failed, or some file lost."""

from pathlib import Path

from bct_jax.report.read import records


def ending_of(path: Path) -> list[str]:
  """How the run ended, and which of its files are gone."""
  if not (path / "done.json").exists():
    if (path / "error.json").exists():
      error = records.read_json(path / "error.json").text("error")
      return [f"This cell of a sweep failed: {error}"]
    if (path / "result.json").exists():
      return ["done.json is missing, which is written last."]
    return []
  listed = records.read_json(path / "done.json").value.get("files")
  if not isinstance(listed, list):  # of a run before files were listed
    return []
  lost = [path / str(name) for name in listed]
  gone = {_topmost(path, file) for file in lost if not file.exists()}
  if not gone:
    return []
  return [f"Missing, though the run is done: {', '.join(sorted(gone))}"]


def _topmost(root: Path, path: Path) -> str:
  """Of a file that is gone: its name, or that of the outermost folder gone."""
  while not path.parent.exists() and root in path.parent.parents:
    path = path.parent
  return path.relative_to(root).as_posix()
