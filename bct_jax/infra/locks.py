"""Waits for another process that makes what this one needs."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from bct_jax.infra import signals


@contextlib.contextmanager
def wait_for_lock(
  path: Path, what: str, say: Callable[[str], object]
) -> Iterator[None]:
  """Holds a lock; the system drops that of a process that was killed.

  Args:
    path: of the lock's file, in a folder that is there.
    what: the holder makes, for messages.
    say: is called with a line if another process holds the lock.

  Raises:
    signals.Preempted: a signal asked to stop while another process held it.
  """
  lock, said = filelock.FileLock(path), False
  while not lock.is_locked:
    try:
      lock.acquire(timeout=0.2 if said else 0)
    except filelock.Timeout:
      if not said:
        say(f"waiting for another process that is making {what}")
      said = True
      if signals.stop_requested():
        raise signals.Preempted(f"while another makes {what}") from None
  try:
    yield
  finally:
    lock.release()
