"""Some of the faults that io_faults.py walks, in whole runs."""

import random
import shutil
import sys

import pytest
from io_faults import Runner, compile_library, find_wrong

needs_compiler = pytest.mark.skipif(
  not sys.platform.startswith("linux") or shutil.which("cc") is None,
  reason="needs Linux and a C compiler",
)


@pytest.fixture(scope="module")
def runner(tiny_folder, tmp_path_factory):
  folder = tmp_path_factory.mktemp("library")
  runner = Runner(compile_library(folder), tiny_folder)
  yield runner
  runner.server.close()


@pytest.fixture(scope="module")
def faults(runner, tmp_path_factory):
  found = list(runner.list_faults(tmp_path_factory.mktemp("all")))
  random.Random(0).shuffle(found)
  return found


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("way", ["full disk", "kill"])
def test_an_operation_that_fails_once_ends_a_run_that_then_goes_on(
  way, runner, faults, finished, tmp_path
):
  # Of a library that comes between, writes by Python and by Orbax are seen.
  assert {f.operation for f in faults} >= {"create", "write", "sync", "rename"}
  assert any("ocdbt" in f.glob and f.operation == "sync" for f in faults)
  fault = next(f for f in faults if f.way == way and f.operation == "write")
  row = runner.try_fault(fault, tmp_path, finished[0])
  assert not find_wrong(row), row
  assert row["fired"] and row["code"]
