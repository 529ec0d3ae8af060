"""Corrects the rates of a run for the errors of its scorer."""

from collections.abc import Mapping
from typing import Any

from bct_jax.evals.calibration import CORRECTED, Corrected
from bct_jax.evals.schema import EvalRecord
from bct_jax.report import text
from bct_jax.report.read.types import ArmRecord, RunRecord


def corrected_rates(
  run: RunRecord, point: EvalRecord
) -> dict[str, Corrected | None]:
  """Returns the rates of an eval that can be corrected, by name.

  None where the run was not calibrated, or its scorer tells no more than
  chance.
  """
  out: dict[str, Corrected | None] = dict.fromkeys(CORRECTED)
  if run.calibration is None:
    return out
  # Prompts of one cue are not independent.
  counts = {
    "eval": point.n_cues or point.n,
    "heldout": point.agreed_cues or point.agreed_n,
  }
  for name, errors in run.calibration.errors.items():
    rate, n = getattr(point, name, None), counts[CORRECTED[name]]
    if rate is not None and n:
      out[name] = errors.correct(rate.value, n)
  return out


def flat_rates(run: RunRecord, point: EvalRecord) -> dict[str, Any]:
  """Returns corrected rates, with bounds, by the keys of `load_results`."""
  out = {}
  for name, rate in corrected_rates(run, point).items():
    low, high = rate.ci if rate else (None, None)
    out |= {
      f"{name}_corrected": rate and rate.value,
      f"{name}_corrected_low": low,
      f"{name}_corrected_high": high,
    }
  return out


def corrected_cell(rate: Corrected | None) -> str:
  """Writes a corrected rate for a table; "" where there is none."""
  return f"{text.percent(rate.value)} {text.interval(rate.ci)}" if rate else ""


def last_corrected(run: RunRecord, arm: ArmRecord) -> Mapping[str, str]:
  """Returns raw and corrected rates of an arm's last eval, as text by name."""
  if not arm.curve or run.calibration is None:
    return {}
  point = arm.curve[-1]
  return {
    name: f"{text.rate(getattr(point, name))} -> {corrected_cell(rate)}"
    for name, rate in corrected_rates(run, point).items()
    if rate is not None
  }
