"""Tests run on eight virtual CPU devices, set before JAX starts."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

# Most of the time goes into compiling. Programs that LLVM leaves as they are do
# in half of it; launch/test.sh has slow tests run them optimized, as users do.
QUICK = (
  ""
  if os.environ.get("BCT_JAX_TEST_OPTIMIZED") == "1"
  else " --xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true"
)
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8" + QUICK

import jax  # noqa: E402
import pytest  # noqa: E402

from bct_jax.models import demo  # noqa: E402

# Where programs are kept: what one test compiles the other worker, and the next
# run of the tests, find. Removing the folder is always safe.
COMPILED = Path(__file__).parent.parent / ".pytest_cache" / "compiled"
jax.config.update("jax_compilation_cache_dir", str(COMPILED / "tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# Files that take longest. They begin first, so that none is left to one worker
# at the end.
LONGEST = ("test_faults", "test_parity", "test_families", "test_multihost")


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
  """A random two-layer model folder whose pad token is its end of turn."""
  return demo.tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_folder):
  workdir = tmp_path_factory.mktemp("runs with spaces") / "done"
  from runs import run

  code, out, err = run(workdir, tiny_folder)
  assert code == 0, err
  return workdir, out, err
