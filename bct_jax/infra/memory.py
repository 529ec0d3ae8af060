"""Keeps the memory of one step for the next one, where JAX runs on the CPU.

XLA allocates the buffers of a program each time it is run. glibc gets blocks of
that size from the kernel and gives them back at the end, so every step has all
its pages made and zeroed again. Told to keep them, a step of SmolLM2 takes 0.8
of the time, and the process half as much memory again. No jax here: it must be
told before JAX starts threads.
"""

import ctypes
import os
import sys
from pathlib import Path

# Of malloc.h: give nothing back, never take a block apart from the heap, and
# have one heap for all threads, since that of another thread cannot grow.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_OPTIONS = ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1))
# What shows that JAX has other devices: NVIDIA's and a TPU's.
_DEVICES = ("nvidia0", "accel0", "vfio/0")


def keep_pages(dev: Path = Path("/dev")) -> bool:
  """Changes how this process allocates; returns whether it did.

  Not with an accelerator, whose host has other uses for the memory, not where
  the environment says how to allocate (MALLOC_..., GLIBC_TUNABLES), and only
  with glibc.

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


def release_memory() -> None:
  """Gives the kernel what is free now, at the end of a part of a run.

  Where small blocks have come to lie among large ones that were freed, the next
  program finds no room there, and the process would grow with each part.
  """
  libc = _glibc()
  if libc is not None:
    libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
  """The C library of this process, if it is that one."""
  if not sys.platform.startswith("linux"):
    return None
  libc = ctypes.CDLL(None)
  return libc if hasattr(libc, "gnu_get_libc_version") else None
