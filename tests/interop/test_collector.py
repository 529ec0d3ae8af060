"""Requests collected into batches."""

import threading
import time

import pytest

from bct_jax.interop.collector import Collector


def test_what_comes_together_is_answered_together():
  batches = []

  def run(requests):
    batches.append(list(requests))
    return [10 * r for r in requests]

  collector = Collector(run, wait=0.2)
  futures = [collector.submit(i) for i in range(5)]
  assert [f.result(20) for f in futures] == [0, 10, 20, 30, 40]
  assert batches == [[0, 1, 2, 3, 4]]
  assert collector.submit(7).result(20) == 70
  collector.close()
  # Closed, it starts again when it is asked.
  assert collector.submit(8).result(20) == 80
  collector.close()


def test_what_comes_while_it_runs_is_the_next_batch():
  batches, begun, go = [], threading.Event(), threading.Event()

  def run(requests):
    batches.append(list(requests))
    begun.set()
    assert go.wait(20)
    return requests

  collector = Collector(run, wait=0.01)
  first = collector.submit(0)
  assert begun.wait(20)
  later = [collector.submit(i) for i in range(1, 9)]
  assert not first.done()
  go.set()
  assert [f.result(20) for f in later] == list(range(1, 9))
  collector.close()
  assert batches == [[0], list(range(1, 9))]


def test_a_steady_stream_is_not_waited_out():
  batches = []

  def run(requests):
    batches.append(len(requests))
    return requests

  collector = Collector(run, wait=10, most=0.05)
  start = time.monotonic()
  assert collector.submit(1).result(20) == 1
  assert time.monotonic() - start < 5
  collector.close()


def test_an_error_is_that_of_the_whole_batch_and_no_other():
  def run(requests):
    if 3 in requests:
      raise ValueError("three")
    return requests

  collector = Collector(run, wait=0.2)
  futures = [collector.submit(i) for i in (1, 3)]
  for future in futures:
    with pytest.raises(ValueError, match="three"):
      future.result(20)
  assert collector.submit(2).result(20) == 2
  collector.close()


def test_answers_that_are_too_few_leave_nobody_waiting():
  collector = Collector(lambda requests: requests[1:], wait=0.2)
  futures = [collector.submit(i) for i in (1, 2)]
  for future in futures:
    with pytest.raises(ValueError, match="1 answers to 2 requests"):
      future.result(20)
  collector.close()


def test_a_cancelled_request_is_not_run():
  seen, go = [], threading.Event()

  def run(requests):
    seen.extend(requests)
    assert go.wait(20)
    return requests

  collector = Collector(run, wait=0)
  first = collector.submit(1)
  while not first.running():
    time.sleep(0.001)
  second, third = collector.submit(2), collector.submit(3)
  assert second.cancel()
  go.set()
  assert third.result(20) == 3 and first.result(20) == 1
  collector.close()
  assert seen == [1, 3]
