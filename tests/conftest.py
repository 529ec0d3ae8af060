"""Tests run on eight virtual CPU devices, set before JAX starts."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import pytest  # noqa: E402

from bct_jax.models import demo  # noqa: E402


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
  """A random two-layer model folder whose pad token is its end of turn."""
  return demo.tiny(tmp_path_factory.mktemp("tiny") / "model")
