"""Reads calibration.json, what --mode=calibrate has measured of a run."""

from pathlib import Path

from bct_jax.evals.calibration import CORRECTED, Errors, Share
from bct_jax.report.read.records import Record, read_json
from bct_jax.report.read.types import CalibrationRecord

FILE = "calibration.json"


def read_calibration(path: Path) -> CalibrationRecord | None:
  """Reads the calibration of a run directory; None where there is none.

  Raises:
    ReportError: the file is damaged; the message names the field.
  """
  if not (path / FILE).exists():
    return None
  record = read_json(path / FILE)
  rates, splits = record.object("rates"), record.object("splits")
  agreement = {}
  for name in splits.value:
    split = splits.object(name)
    kappa = split.number("kappa") if split.has("kappa") else None
    agreement[name] = (
      split.count("answers"),
      _share(split, "agreement"),
      kappa,
      split.interval("kappa_ci"),
    )
  errors = {}
  for name in CORRECTED:
    if rates.has(name):
      rate = rates.object(name)
      errors[name] = Errors(
        _share(rate, "sensitivity"), _share(rate, "specificity")
      )
  return CalibrationRecord(agreement, errors)


def _share(record: Record, name: str) -> Share:
  """Reads a share with its number of answers and its interval."""
  ci = record.interval(f"{name}_ci")
  if ci is None:
    raise record.error(f"{name}_ci", "an interval")
  return Share(record.share(name), record.number(f"{name}_n"), ci)
