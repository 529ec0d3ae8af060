"""That a process on the CPU keeps its pages, and others are left alone."""

import subprocess
import sys

import pytest
from runs import ROOT

from bct_jax.infra import memory

# Page faults of a program that is run again, with 64 MiB of a temporary value:
# most often, once it has found a place that is free each time.
COUNT = """
import resource, statistics, sys
from bct_jax.infra import memory
if "keep" in sys.argv:
  assert memory.keep_pages()
import jax, jax.numpy as jnp
f = jax.jit(lambda x: jnp.exp(x @ x.T) @ x)
x = jnp.ones((4096, 16))
def faults():
  f(x).block_until_ready()
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
counts = [faults() for _ in range(24)][-15:]
print(int(statistics.median(b - a for a, b in zip(counts, counts[1:]))))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_a_program_finds_its_pages_when_it_is_run_again():
  def count(*flags):
    out = subprocess.run(
      [sys.executable, "-c", COUNT, *flags],
      env={"JAX_PLATFORMS": "cpu", "PATH": "", "PYTHONPATH": str(ROOT)},
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    )
    return int(out.stdout)

  assert count() > 10_000  # 4 KiB each
  assert count("keep") < 100


@pytest.mark.parametrize(
  ("platforms", "device", "chosen"),
  [
    ("", "nvidia0", ""),
    ("cuda", "", ""),
    ("tpu,cpu", "", ""),
    ("cpu", "", "MALLOC_ARENA_MAX"),
  ],
)
def test_accelerators_and_what_a_user_chose_are_left_alone(
  platforms, device, chosen, tmp_path, monkeypatch
):
  monkeypatch.setenv("JAX_PLATFORMS", platforms)
  if chosen:
    monkeypatch.setenv(chosen, "8")
  if device:
    (tmp_path / device).touch()
  monkeypatch.setattr(memory.ctypes, "CDLL", None)  # would raise
  assert not memory.keep_pages(tmp_path)
