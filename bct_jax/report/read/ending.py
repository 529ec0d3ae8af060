"""Says how a run ended: done, failed, or not to the last file."""

from pathlib import Path

from bct_jax.infra import done_file
from bct_jax.report.read import records


def ending_of(path: Path) -> list[str]:
  """Lists what is wrong with the end of a run, a line each.

  Args:
    path: the run directory.

  Returns:
    How it failed, or what is not known of its files. Empty for a run that is
    whole or still goes on.
  """
  if not (path / "done.json").exists():
    if (path / "error.json").exists():
      error = records.read_json(path / "error.json").text("error")
      return [f"This cell of a sweep failed: {error}"]
    if (path / "result.json").exists():
      return ["done.json is missing, which is written last."]
    return []
  if done_file.has_hashes(path):
    return []
  return ["done.json has no hashes: files were looked for by name alone."]
