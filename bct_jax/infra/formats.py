"""Writes numbers for readers, alike in terminal, report and tables.

Names of cells and data files keep the numbers that they were made with.
"""

import math
import re


def number(value: float) -> str:
  """Writes four significant digits, and 1e-4 rather than 0.0001 or 1e-04."""
  if not 0 < abs(value) < 1e-3:
    return re.sub(r"e\+0*", "e", f"{value:.4g}")
  mantissa, exponent = f"{value:.3e}".split("e")
  return f"{float(mantissa):g}e{int(exponent)}"


def percent(value: float) -> str:
  """Writes a share in percent; only 0 and 1 themselves are 0% and 100%."""
  for digits in (0, 1, 2):
    text = f"{100 * value:.{digits}f}"
    if float(text) not in (0, 100) or value in (0, 1):
      return text + "%"
  return "<0.01%" if value < 0.5 else ">99.99%"


def interval(ci: tuple[float, float] | None) -> str:
  """Writes the interval of a share in percent; "" where there is none."""
  return f"[{percent(ci[0])}, {percent(ci[1])}]" if ci else ""


def duration(seconds: float) -> str:
  """Writes a duration in the unit that suits it: 9.8 s, 95 s, 2 h 5 min."""
  if not math.isfinite(seconds):
    return "unknown time"
  if seconds < 9.95:
    return f"{seconds:.1f} s"
  if seconds < 119.5:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  if minutes < 120:
    return f"{minutes} min"
  return f"{minutes // 60} h {minutes % 60} min"


def size(count: float) -> str:
  """Writes a number of bytes in the unit that suits it: 12 KiB, 1.40 GiB."""
  for unit in ("bytes", "KiB", "MiB"):
    if count < 1024:
      return f"{count:.0f} {unit}"
    count /= 1024
  return f"{count:.2f} GiB"
