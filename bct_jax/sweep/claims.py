"""Shares the cells of a sweep among machines: who trains what, and who died.

Machines that run the same command on one directory claim groups of cells, one
after another. A claim is a file that its owner writes again and again, each
time with the next number. Another machine takes a claim over when it has seen
the same number for the whole length of a lease, on its own clock. So clocks of
machines may differ as they like.

  claims/NAME.json   {"owner", "host", "process", "cells", "beat"} of a group,
                     by its first cell
  claims/.lock       is held while a claim is looked at and changed

A process that died on this machine is known at once: the system has let go of
the lock of its group. A machine that only hung, and finds its claim taken when
it wakes, stops after the step that it is in.
"""

import contextlib
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock

from bct_jax.infra import files, signals
from bct_jax.infra.formats import duration

FOLDER = "claims"
BEATS = 6  # in a lease


class Claims:
  """Holds the claims of one process on groups of cells."""

  def __init__(
    self,
    root: Path,
    lease: float,
    clock: Callable[[], float] = time.monotonic,
    on_lost: Callable[[], None] = signals.request_stop,
  ):
    """Begins without any claim.

    Args:
      root: the directory of the sweep.
      lease: seconds without a beat after which a claim is taken over.
      clock: this machine's, in seconds from anywhere.
      on_lost: called when another machine has taken a claim of this one.
    """
    self.folder, self.lease, self._clock = root / FOLDER, lease, clock
    self.owner = uuid.uuid4().hex
    self._on_lost, self._beat = on_lost, 0
    # Groups -> the lock that the system holds for this process, their cells.
    self._mine: dict[str, tuple[filelock.FileLock, list[str]]] = {}
    # Claims of others -> what they last said, and when that was first seen.
    self._seen: dict[str, tuple[Mapping[str, Any], float]] = {}
    self._busy = threading.Lock()
    self.folder.mkdir(parents=True, exist_ok=True)
    self._lock = filelock.FileLock(self.folder / ".lock")

  def take(self, cells: Sequence[str]) -> bool:
    """Claims a group of cells, unless another process has it and is alive."""
    name = cells[0]
    own = filelock.FileLock(self.folder / f".{name}.lock")
    with self._busy, self._lock:
      claim = self._read(name)
      free = claim is None or claim["owner"] == self.owner
      with contextlib.suppress(filelock.Timeout):
        own.acquire(blocking=False)
      if not free:
        assert claim is not None
        died_here = own.is_locked and claim["host"] == socket.gethostname()
        if not (died_here or self._is_silent(name, claim)):
          own.release()
          return False
        where = f"process {claim['process']} on {claim['host']}"
        print(
          f"cells of {name}: taken over from {where}, which is gone",
          file=sys.stderr,
          flush=True,
        )
      self._mine[name] = own, list(cells)
      self._write(name)
    return True

  def release(self, name: str) -> None:
    """Gives a claim back, whose cells have ended or are left to others."""
    with self._busy, self._lock:
      own, _ = self._mine.pop(name)
      claim = self._read(name)
      if claim is not None and claim["owner"] == self.owner:
        self._path(name).unlink()
      own.release()

  @contextlib.contextmanager
  def beating(self) -> Iterator[None]:
    """Renews the claims in a thread, until the block ends."""
    ended = threading.Event()

    def renew() -> None:
      while not ended.wait(self.lease / BEATS):
        self.beat()

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
      yield
    finally:
      ended.set()
      thread.join()

  def beat(self) -> None:
    """Renews all claims once, and finds those that another has taken."""
    with self._busy:
      if not self._mine:
        return
      try:
        with self._lock:
          self._beat += 1
          for name in self._mine:
            claim = self._read(name)
            if claim is None or claim["owner"] != self.owner:
              print(
                f"cells of {name}: taken over by another machine, since this "
                f"one gave no sign of life for {duration(self.lease)}",
                file=sys.stderr,
                flush=True,
              )
              self._on_lost()
            else:
              self._write(name)
      except OSError as e:  # a disk that is away for a moment, or full
        print(f"claims: {e}", file=sys.stderr, flush=True)

  def _is_silent(self, name: str, claim: Mapping[str, Any]) -> bool:
    """Tells whether a claim said the same for a whole lease, as seen here."""
    now = self._clock()
    if name not in self._seen or self._seen[name][0] != claim:
      self._seen[name] = claim, now
    return now - self._seen[name][1] >= self.lease

  def _path(self, name: str) -> Path:
    """Returns the file of a claim."""
    return self.folder / f"{name}.json"

  def _read(self, name: str) -> Mapping[str, Any] | None:
    """Reads a claim; None where there is none."""
    path = self._path(name)
    return files.read_json(path) if path.exists() else None

  def _write(self, name: str) -> None:
    """Writes the own claim with the next beat."""
    claim = {
      "owner": self.owner,
      "host": socket.gethostname(),
      "process": os.getpid(),
      "cells": self._mine[name][1],
      "beat": self._beat,
    }
    files.write_json(self._path(name), claim)


def read_claims(root: Path) -> dict[str, Mapping[str, Any]]:
  """Returns the claims of a sweep by the first cell of each group."""
  paths = sorted((root / FOLDER).glob("*.json"))
  return {path.stem: files.read_json(path) for path in paths}
