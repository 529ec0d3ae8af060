"""Keeps runs on other machines out of a folder of an object store.

The folder has an object for each command that held it, .owner/NUMBER.json, and
the highest number holds it. A number is taken by a write that fails if the
object is there, so of two commands that try one succeeds. The holder writes
its own object again and again, with the next beat each time.

A command that finds a holder watches it for the length of a lease, by its own
clock. If beats come until then, the folder is in use. If none comes for a
lease, the holder is gone, and the next number is taken. A holder that only hung
finds the higher number at its next beat, or before its next write if its last
beat was long ago; it stops without writing. What it was sending at that very
moment may still arrive.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from bct_jax.infra import signals
from bct_jax.infra.formats import duration
from bct_jax.infra.object_store import Store
from bct_jax.infra.progress import log_line

FOLDER = ".owner"
BEATS = 6  # in a lease


class StoreLock:
  """Holds a folder of a store for one command.

  Attributes:
    last: what the holder before said of itself; None if there was none.
  """

  def __init__(
    self,
    store: Store,
    owner: str,
    lease: float,
    is_dead: Callable[[dict[str, Any]], bool],
  ):
    """Takes the lock.

    Args:
      store: of the folder.
      owner: names this command.
      lease: seconds without a beat after which a holder is gone.
      is_dead: tells of a holder whether it is known to be gone.

    Raises:
      ValueError: another command holds the folder.
      signals.Preempted: a signal asked to stop while a holder was watched.
    """
    # A beat that fails is not tried again: the next one comes.
    self._store, self._beats = store, Store(store.url, 0)
    self._lease, self._ended = lease, threading.Event()
    self._busy, self._is_lost = threading.Lock(), False
    self._me = {
      "owner": owner,
      "host": socket.gethostname(),
      "process": os.getpid(),
      "beat": 0,
      "ended": False,
    }
    number, self.last = _newest(store)
    if self.last and not (self.last["ended"] or is_dead(self.last)):
      number, self.last = self._watch(number, self.last)
    self._number = number + 1
    self._confirmed = time.monotonic()
    if not store.create(_name(self._number), self._content()):
      raise self._in_use(_newest(store)[1])
    number, newest = _newest(store)
    if number != self._number:  # others came and went, and removed old numbers
      store.delete([_name(self._number)])
      raise self._in_use(newest)
    store.delete(n for n in store.list(FOLDER) if n < _name(self._number))
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def _watch(
    self, number: int, holder: dict[str, Any]
  ) -> tuple[int, dict[str, Any]]:
    """Waits for a lease until a holder has ended, or is silent for a lease.

    One that was preempted may still be saving when its successor is here.

    Raises:
      ValueError: it goes on.
    """
    log_line(
      f"{self._store.url}: held by {_words(holder)}; watching for "
      f"{duration(self._lease)} whether it is alive"
    )
    begin = heard = time.monotonic()
    while time.monotonic() - heard < self._lease:
      if signals.stop_requested():
        raise signals.Preempted("while another held the run directory")
      time.sleep(self._lease / 2 / BEATS)
      newest, said = _newest(self._store)
      if said and said["ended"]:
        return newest, said
      if said and (newest, said) != (number, holder):
        number, holder, heard = newest, said, time.monotonic()
        if heard - begin > self._lease:
          raise self._in_use(holder)
    log_line(f"{self._store.url}: taken over from {_words(holder)}: it is gone")
    return number, holder

  def _in_use(self, holder: dict[str, Any] | None) -> ValueError:
    """Returns the error for a folder that another command holds."""
    return ValueError(
      f"{self._store.url} is in use by {_words(holder)}; it is free when that "
      f"process ends, or {duration(self._lease)} after it was killed"
    )

  def check(self) -> None:
    """Makes sure that this command holds the folder, before it writes there.

    Raises:
      OSError: another one does, or the store cannot be asked.
    """
    if time.monotonic() - self._confirmed > self._lease / 2:
      self._beat(self._store)
    if self._is_lost:
      raise OSError(
        f"{self._store.url}: taken over by another machine, since this one "
        f"gave no sign of life for {duration(self._lease)}"
      )

  def release(self) -> None:
    """Gives the folder back, as the store then has all of it."""
    self.end()
    if not self._is_lost:
      self._me["ended"] = True
      self._store.write(_name(self._number), self._content())

  def end(self) -> None:
    """Ends the beats, without a word to others."""
    self._ended.set()
    self._thread.join()

  def _renew(self) -> None:
    """Beats until the command ends."""
    while not self._ended.wait(self._lease / BEATS):
      try:
        self._beat(self._beats)
      except OSError:
        continue  # a network that is away; `check` tells how long
      if self._is_lost:
        return signals.request_stop()

  def _beat(self, store: Store) -> None:
    """Writes the next beat, unless another command has taken over."""
    with self._busy:
      now = time.monotonic()
      if max(map(_number, store.list(FOLDER)), default=0) != self._number:
        self._is_lost = True
        return
      self._me["beat"] += 1
      store.write(_name(self._number), self._content())
      self._confirmed = now

  def _content(self) -> bytes:
    """Returns what this command says of itself."""
    return json.dumps(self._me).encode()


def _name(number: int) -> str:
  """Returns the name of an object of the lock."""
  return f"{FOLDER}/{number:08d}.json"


def _number(name: str) -> int:
  """Returns the number in the name of an object."""
  return int(name.rpartition("/")[2].partition(".")[0])


def _newest(store: Store) -> tuple[int, dict[str, Any] | None]:
  """Returns the highest number and what its holder says; 0 and None at first.

  Raises:
    ValueError: the object is none of a lock.
  """
  while True:
    names = store.list(FOLDER)
    if not names:
      return 0, None
    name = max(names)
    try:
      return _number(name), json.loads(store.read(name))
    except FileNotFoundError:
      continue  # a newer holder has just removed it
    except ValueError:
      raise ValueError(f"{store.url}/{name} is damaged: remove it") from None


def _words(holder: dict[str, Any] | None) -> str:
  """Names a holder."""
  if holder is None:
    return "another process"
  return f"process {holder['process']} on {holder['host']}"
