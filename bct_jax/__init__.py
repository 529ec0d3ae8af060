"""Behavior-compatible training experiments in JAX."""

from typing import Any

__version__ = "0.1.0"


def load_results(run_dirs: Any) -> list[dict[str, Any]]:
  """All evals of some run directories, see bct_jax.report.tables."""
  from bct_jax.report.tables import load_results as load

  return load(run_dirs)
