"""Keeps the memory of one step for the next one, where JAX runs on the CPU.

XLA allocates the buffers of a program each time the program runs. glibc gets
blocks of that size from the kernel and gives them back at the end, so every
step has all its pages made and zeroed again. When glibc keeps the blocks, a
step of SmolLM2 takes 0.8 of the time, and the process half as much memory
again.

Environment variables (MALLOC_TRIM_THRESHOLD_=-1 MALLOC_MMAP_MAX_=0
MALLOC_ARENA_MAX=1) do as much: a program with 64 MiB of temporary values has no
page faults a run with either, and 16,385 without. But glibc reads variables
when a process starts, so a run without a launcher would have to start itself
again. A call works in either case. It must come before JAX starts threads,
hence no jax here.
"""

import contextlib
import ctypes
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# Options of malloc.h: give nothing back, take no block apart from the heap, and
# have one heap for all threads, since other threads' heaps cannot grow.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_OPTIONS = ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1))
# Device files of accelerators: NVIDIA's and a TPU's.
_DEVICES = ("nvidia0", "accel0", "vfio/0")


def keep_pages(dev: Path = Path("/dev")) -> bool:
  """Has this process keep freed memory; returns whether it will.

  It will not with an accelerator, whose host has other uses for the memory, nor
  where the environment says how to allocate (MALLOC_..., GLIBC_TUNABLES), nor
  without glibc.

  Args:
    dev: where the system has its device files.
  """
  platforms = os.environ.get("JAX_PLATFORMS", "")
  elsewhere = any((dev / name).exists() for name in _DEVICES)
  if platforms not in ("", "cpu") or (elsewhere and not platforms):
    return False
  if any(x.startswith(("MALLOC_", "GLIBC_TUNABLES")) for x in os.environ):
    return False
  libc = _glibc()
  return libc is not None and all(
    [libc.mallopt(option, value) for option, value in _OPTIONS]
  )


class OutOfMemory(RuntimeError):
  """Is raised where the memory of a device or of the host does not suffice."""


# XLA's CPU backend says INTERNAL where others say RESOURCE_EXHAUSTED.
_SHORTAGE = re.compile(r"RESOURCE_EXHAUSTED|out of memory", re.IGNORECASE)


@contextlib.contextmanager
def name_shortage(what: str, knobs: str) -> Iterator[None]:
  """Raises what XLA says of too little memory as one line with a way out.

  Args:
    what: the body does, as "training high".
    knobs: the fields that make it need less, as flags.

  Raises:
    OutOfMemory: what did not fit, and what helps.
  """
  try:
    yield
  except OutOfMemory:
    raise  # what is inside knows better what it did
  except (RuntimeError, MemoryError) as e:
    # Python's own MemoryError mostly has no text.
    if isinstance(e, RuntimeError) and not _SHORTAGE.search(str(e)):
      raise
    text = " ".join(str(e).split())[:200] or "no memory of the host is left"
    raise OutOfMemory(
      f"out of memory while {what}: {text.rstrip('.')}. "
      f"{f'Less is needed with {knobs}. ' if knobs else ''}"
      "--mode=dry_run says what needs how much"
    ) from e


def release_memory() -> None:
  """Gives free memory back to the kernel, at the end of a part of a run.

  Small blocks come to lie among the large blocks that were freed. The next
  program then finds no room there, and the process would grow with each part.
  """
  libc = _glibc()
  if libc is not None:
    libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
  """Returns the C library of this process; None if it is not glibc."""
  if not sys.platform.startswith("linux"):
    return None
  libc = ctypes.CDLL(None)
  return libc if hasattr(libc, "gnu_get_libc_version") else None
