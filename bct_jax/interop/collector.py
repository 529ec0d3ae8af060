"""Collects requests that come one at a time and answers them together."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Collector(Generic[Q, A]):
  """Calls a function with all waiting requests, in a thread of its own.

  A batch is closed when no request has come for `wait` seconds, or `most`
  seconds after its first one. Requests that come while the function runs are
  the next batch, so a slow function gets large batches:

    requests   a b c            d e f g h            i
    function        [a b c ------------][d e f g h -------------][i

  Args:
    run: requests -> answers in their order. If it raises, every request of the
      batch gets the exception.
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
    """Adds a request; returns at once what its answer will be in."""
    future: Future[A] = Future()
    with self._lock:
      self._queue.put((request, future))
      if self._thread is None:
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
    return future

  def close(self) -> None:
    """Ends the thread once all submitted requests are answered."""
    with self._lock:
      thread, self._thread = self._thread, None
      if thread is not None:
        self._queue.put(None)
    if thread is not None:
      thread.join()

  def _work(self) -> None:
    """Collects batches and answers them, until `close` is called."""
    while True:
      batch = [self._queue.get()]
      end = time.monotonic() + self._most
      while batch[-1] is not None:
        timeout = min(self._wait, end - time.monotonic())
        try:
          batch.append(self._queue.get(timeout=max(timeout, 0)))
        except queue.Empty:
          break
      last = batch[-1] is None
      self._answer([job for job in batch if job is not None])
      if last:
        return

  def _answer(self, jobs: list) -> None:
    """Answers a batch of pairs of request and future."""
    # Skips requests that were cancelled while they waited.
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
