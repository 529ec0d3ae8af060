"""Tests run on eight virtual CPU devices, set before JAX starts."""

import gc
import json
import os
from importlib.metadata import version
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
# Threads of torch wait for each other by turning. On cores that others use they
# took thirty times the CPU that its small models need.
os.environ["OMP_NUM_THREADS"] = "1"

# Most of the time goes into compiling. Programs that LLVM leaves as they are do
# in half of it, those of XLA's older emitters, which releases after 0.10 do not
# have, in a third of that. launch/test.sh runs `optimized` tests as users have
# them, and .ci/run compiles with a newer JAX.
QUICK = ""
if os.environ.get("BCT_JAX_TEST_OPTIMIZED") != "1":
  QUICK = " --xla_backend_optimization_level=0"
  QUICK += " --xla_llvm_disable_expensive_passes=true"
  if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8" + QUICK

import jax  # noqa: E402
import pytest  # noqa: E402
from filelock import FileLock  # noqa: E402

from bct_jax.models import demo  # noqa: E402

# Where programs are kept: what one test compiles the other worker, and the next
# run of the tests, find. Removing the folder is always safe.
COMPILED = Path(__file__).parent.parent / ".pytest_cache" / "compiled"
jax.config.update("jax_compilation_cache_dir", str(COMPILED / "tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)

# Imports and tracing make many objects that stay or go by themselves. To look
# for circles among them as often as Python does took a tenth of the time.
gc.set_threshold(50_000, 20, 50)

# Files that take longest, the longest first. They begin first, so that none is
# left to one worker at the end.
LONGEST = (
  *("test_newcomer", "test_refine", "test_multihost", "test_parity"),
  *("test_together", "test_faults", "test_invariance", "test_experiment"),
  *("test_lora_runs", "test_topology", "test_launch", "test_families"),
)


def pytest_collection_modifyitems(items):
  rank = {name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish():
  gc.freeze()  # what is imported stays


@pytest.fixture(scope="session")
def common(tmp_path_factory):
  """A folder that the workers of one call of pytest share."""
  folder = tmp_path_factory.getbasetemp()
  return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def tiny_folder(common):
  """A random two-layer model folder whose pad token is its end of turn."""
  return demo.tiny(common / "tiny" / "model")


@pytest.fixture(scope="session")
def finished(common, tiny_folder):
  """A finished run of configs/tiny.py, and what it printed."""
  from runs import run

  workdir = common / "runs with spaces" / "done"
  printed = workdir.with_name("printed.json")
  with FileLock(common / "finished.lock"):
    if not printed.exists():
      workdir.parent.mkdir()
      code, out, err = run(workdir, tiny_folder)
      assert code == 0, err
      printed.write_text(json.dumps([out, err]))
  return workdir, *json.loads(printed.read_text())
