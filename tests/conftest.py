"""Tests run on eight virtual CPU devices, set before JAX starts."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
# A mistake in shapes must not be hidden by silent broadcasting.
jax.config.update("jax_numpy_rank_promotion", "raise")

from bct_jax.models import demo


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
  """A random two-layer model folder whose pad token is its end of turn."""
  return demo.tiny(tmp_path_factory.mktemp("tiny") / "model")
