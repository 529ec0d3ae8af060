"""Behavior-compatible training experiments in JAX."""

from typing import Any

__version__ = "0.1.0"


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
