"""Behavior-compatible training experiments in JAX."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from ml_collections import ConfigDict

  from bct_jax.modes.notebook import NotebookModel

__version__ = "0.1.0"


def run(
  config: "str | Path | ConfigDict",
  workdir: str | Path,
  overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
  """Runs or resumes an experiment, see bct_jax.modes.notebook.run."""
  from bct_jax.modes import notebook

  return notebook.run(config, workdir, overrides)


def load_model(path: str | Path, **options: Any) -> "NotebookModel":
  """Loads a model of a run or folder, see bct_jax.modes.notebook.load_model."""
  from bct_jax.modes import notebook

  return notebook.load_model(path, **options)


def load_results(run_dirs: Any) -> list[dict[str, Any]]:
  """Reads all evals of some run directories, see bct_jax.report.tables."""
  from bct_jax.report.tables import load_results as load

  return load(run_dirs)


def __getattr__(name: str) -> Any:
  """Imports `bct_jax.summary`, which is bct_jax.evals.summary, when asked."""
  if name == "summary":
    from bct_jax.evals import summary

    return summary
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
