"""That a process on the CPU keeps its pages, and others are left alone."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from runs import ROOT, run

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


@pytest.mark.long
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


def test_a_shortage_is_one_line_with_a_way_out():
  """By what XLA really raises where memory does not suffice."""
  with pytest.raises(
    memory.OutOfMemory,
    match="^out of memory while training a: .*Out of memory allocating "
    r"[\d,]+ bytes. Less is needed with --config.train.accum=2. --mode=dry_run",
  ):
    with memory.name_shortage("running", ""):
      with memory.name_shortage("training a", "--config.train.accum=2"):
        jnp.zeros(1 << 46).block_until_ready()
  with pytest.raises(memory.OutOfMemory, match="while running: "):
    with memory.name_shortage("running", ""):
      sort = jax.jit(lambda x: jnp.sort(jnp.outer(x, x), axis=0)[0, 0])
      sort(jnp.ones(1 << 22)).block_until_ready()
  with pytest.raises(RuntimeError, match="^other$"):
    with memory.name_shortage("running", ""):
      raise RuntimeError("other")


def test_a_command_without_memory_has_its_code(tiny_folder):
  """A cache for so many rows that no machine has room for it."""
  flags = "--mode=sample", "--prompt=Hi.", "--config.sampling.batch_size="
  code, _, err = run(None, tiny_folder, *flags[:2], f"{flags[2]}{1 << 40}")
  assert code == 5 and "Traceback" not in err, err
  last = err.strip().splitlines()[-1]
  assert last.startswith("error: out of memory while sampling 1 rows: ")
  assert f"--config.sampling.batch_size below {1 << 40}" in last
