"""Stops a run on a signal, so that the same command goes on later."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

# Schedulers send SIGTERM before they take a machine away; Ctrl-C sends SIGINT.
STOPPING = (signal.SIGTERM, signal.SIGINT)

_asked = threading.Event()


class Preempted(Exception):
  """Is raised when a signal asked to stop and the run is saved."""


def stop_requested() -> bool:
  """Returns whether a signal has asked this process to stop."""
  return _asked.is_set()


def request_stop() -> None:
  """Asks this process to stop, as the first signal does."""
  _asked.set()


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
  """Takes the first signal as a request to stop, and ends at the second.

  A pipe passes signals to a thread: a Python handler would not run while the
  main thread compiles or waits for a device, which may take minutes.
  """
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  before = {s: signal.signal(s, lambda *_: None) for s in STOPPING}
  wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  thread = threading.Thread(target=_watch, args=(reader,), daemon=True)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(wakeup)
    for s, handler in before.items():
      signal.signal(s, handler)
    os.close(writer)  # which ends the thread
    thread.join()
    os.close(reader)
    _asked.clear()


def _watch(reader: int) -> None:
  """Reads signal numbers from a pipe until it is closed."""
  while number := os.read(reader, 1):
    name = signal.Signals(number[0])
    if number[0] not in STOPPING:
      continue
    if _asked.is_set():
      os._exit(128 + name)
    _asked.set()
    print(
      f"{name.name}: stopping after this step; a second signal ends it at once",
      file=sys.stderr,
      flush=True,
    )
