"""Requests that come one at a time, answered together."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Collector(Generic[Q, A]):
  """Calls a function with all requests that are there, in a thread of its own.

  A batch is closed when no request has come for `wait` seconds, or after
  `most`. What comes while the function runs is the next batch, so that a slow
  function gets large ones.

  Args:
    run: requests -> answers in their order. An exception is that of all.
    wait: seconds.
    most: seconds.
  """

  def __init__(
    self,
    run: Callable[[Sequence[Q]], Sequence[A]],
    wait: float = 0.02,
    most: float = 0.5,
  ):
    self._run, self._wait, self._most = run, wait, most
    self._queue: queue.SimpleQueue = queue.SimpleQueue()
    self._lock = threading.Lock()
    self._thread: threading.Thread | None = None

  def submit(self, request: Q) -> "Future[A]":
    """The answer, as soon as there is one; returns at once."""
    future: Future[A] = Future()
    with self._lock:
      self._queue.put((request, future))
      if self._thread is None:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
    return future

  def close(self) -> None:
    """Ends the thread after what was submitted."""
    with self._lock:
      thread, self._thread = self._thread, None
      if thread is not None:
        self._queue.put(None)
    if thread is not None:
      thread.join()

  def _work(self) -> None:
    while True:
      batch = [self._queue.get()]
      end = time.monotonic() + self._most
      while batch[-1] is not None:
        left = min(self._wait, end - time.monotonic())
        try:
          batch.append(self._queue.get(timeout=max(left, 0)))
        except queue.Empty:
          break
      last = batch[-1] is None
      self._answer([job for job in batch if job is not None])
      if last:
        return

  def _answer(self, jobs: list) -> None:
    # Those that were cancelled meanwhile are left out.
    jobs = [(q, f) for q, f in jobs if f.set_running_or_notify_cancel()]
    if not jobs:
      return
    try:
      answers = list(self._run([q for q, _ in jobs]))
      if len(answers) != len(jobs):
        raise ValueError(f"{len(answers)} answers to {len(jobs)} requests")
    except BaseException as e:  # whoever waits must hear of it
      for _, future in jobs:
        future.set_exception(e)
      return
    for (_, future), answer in zip(jobs, answers, strict=True):
      future.set_result(answer)
