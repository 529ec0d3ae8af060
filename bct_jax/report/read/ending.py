"""Says how a run ended: done, failed, or done with some file lost."""

from pathlib import Path

from bct_jax.report.read import records


def ending_of(path: Path) -> list[str]:
  """Lists what is wrong with the end of a run, a line each.

  Args:
    path: the run directory.

  Returns:
    How it failed, or which of its files are lost. Empty for a run that is whole
    or still goes on.
  """
  if not (path / "done.json").exists():
    if (path / "error.json").exists():
      error = records.read_json(path / "error.json").text("error")
      return [f"This cell of a sweep failed: {error}"]
    if (path / "result.json").exists():
      return ["done.json is missing, which is written last."]
    return []
  names = records.read_json(path / "done.json").value.get("files")
  if not isinstance(names, list):  # of a run before files were listed
    return []
  paths = [path / str(name) for name in names]
  lost = {_topmost(path, file) for file in paths if not file.exists()}
  if not lost:
    return []
  return [f"Missing, though the run is done: {', '.join(sorted(lost))}"]


def _topmost(root: Path, path: Path) -> str:
  """Names a lost file, or the outermost lost folder that it was in."""
  while not path.parent.exists() and root in path.parent.parents:
    path = path.parent
  return path.relative_to(root).as_posix()
