"""Says which cases of a test a default run has."""

import pytest


def long_but(quick, cases):
  """Marks all cases long but those that are `quick`, by their value."""
  missing = [x for x in quick if x not in cases]
  assert not missing, f"no case: {missing}"
  return [
    case
    if case in quick
    else pytest.param(
      *(case if isinstance(case, tuple) and case else (case,)),
      marks=pytest.mark.long,
    )
    for case in cases
  ]
