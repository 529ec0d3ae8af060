"""How hypothesis draws examples here."""

import hypothesis

# The same examples in every run: a failure is a change of the code.
PROFILE = hypothesis.settings(
  derandomize=True,
  deadline=None,
  database=None,
  max_examples=40,
  suppress_health_check=list(hypothesis.HealthCheck),
)
