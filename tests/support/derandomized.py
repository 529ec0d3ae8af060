"""How hypothesis draws examples here."""

import os

import hypothesis

# Many in continuous integration and with launch/test.sh --all.
ALL = os.environ.get("BCT_JAX_TEST_ALL") == "1"

# The same examples in every run: a failure is a change of the code.
PROFILE = hypothesis.settings(
  derandomize=True,
  deadline=None,
  database=None,
  max_examples=40 if ALL else 10,
  suppress_health_check=list(hypothesis.HealthCheck),
)
