"""Numbers look alike wherever a reader meets them."""

import ast
import math

import pytest
from imports import ROOT

from bct_jax.infra import formats

# Not for readers, or not of experiments: names of cells, drawing, messages of
# one library.
APART = {
  *("bct_jax/infra/formats.py", "bct_jax/sweep/cells.py", "bct_jax/tour.py"),
  "bct_jax/evals/groups.py",  # names of fields
  "bct_jax/report/draw/picture.py",  # attributes of SVG
}


@pytest.mark.parametrize(
  "write, value, text",
  [
    (formats.number, 0, "0"),
    (formats.number, 1e-5, "1e-5"),
    (formats.number, 0.0001, "1e-4"),
    (formats.number, -2.5e-4, "-2.5e-4"),
    (formats.number, 0.03, "0.03"),
    (formats.number, 123456, "1.235e5"),
    (formats.percent, 0.0, "0%"),
    (formats.percent, 0.972, "97%"),
    (formats.percent, 0.9999, "99.99%"),
    (formats.percent, 1e-9, "<0.01%"),
    (formats.interval, (0.5, 1.0), "[50%, 100%]"),
    (formats.interval, None, ""),
    (formats.duration, 0.44, "0.4 s"),
    (formats.duration, 9.97, "10 s"),
    (formats.duration, 119, "119 s"),
    (formats.duration, 119.6, "2 min"),
    (formats.duration, 2592.1, "43 min"),
    (formats.duration, 7500, "2 h 5 min"),
    (formats.duration, 3599.9 * 2, "2 h 0 min"),
    (formats.duration, math.nan, "unknown time"),
    (formats.size, 800, "800 bytes"),
    (formats.size, 1.4 * 2**30, "1.40 GiB"),
  ],
)
def test_formats(write, value, text):
  assert write(value) == text


def test_no_module_formats_shares_and_rates_by_itself():
  """`:g` writes 1e-05, and `:.0%` 100% where one of a thousand is missing."""
  found = []
  for path in sorted((ROOT / "bct_jax").rglob("*.py")):
    name = path.relative_to(ROOT).as_posix()
    if name in APART or name.startswith("bct_jax/linear/"):
      continue
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
      if isinstance(node, ast.FormattedValue) and node.format_spec:
        spec = ast.unparse(node.format_spec).strip("f'\"")
        if spec == "g" or spec.endswith("%"):
          found.append(f"{name}:{node.lineno} {spec}")
  assert not found
