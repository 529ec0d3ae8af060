"""Joins the processes of a run and lets them agree.

Files are written by the first process alone, and what it reads decides. The
others receive it through the coordination service of JAX and never look for
themselves, since a shared file system may show them an older state;
shared_files.py has the functions for this. Every wait has a name and ends after
`timeout` seconds.
"""

import contextlib
import functools
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # JAX offers its key-value store nowhere else
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bct_jax.infra import exit_codes, lost_processes
from bct_jax.infra.exit_codes import MACHINE
from bct_jax.infra.formats import number
from bct_jax.infra.memory import OutOfMemory

T = TypeVar("T")

# Characters of a value that are stored under one key, well below the limit of
# a message.
_PART = 1_000_000
# Errors of one process that are of the same type in all: each type has its own
# exit code.
_KINDS = (ValueError, OSError, OutOfMemory)


class ProcessError(RuntimeError):
  """Is raised if another process failed or did not come.

  The same command goes on from what is saved.
  """


class _State:
  """Holds what `join` sets and `_key` counts."""

  timeout = 600.0  # seconds
  waits = 0  # so that no two waits share a key; equal in all processes


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  timeout: float = 600,
) -> None:
  """Joins the processes of a pod or cluster, before any other JAX call.

  Args:
    coordinator: HOST:PORT of the first process; None lets JAX find it out, on
      a Cloud TPU, GKE TPU, Slurm or Open MPI.
    num_processes: how many are expected; None trusts what JAX detects.
    process_id: of this process, from 0; None as for the coordinator.
    timeout: seconds that processes wait for each other, here and later.

  Raises:
    ValueError: JAX does not find out which process this is.
    ProcessError: the processes did not meet, or another number of them came.
  """
  _State.timeout = timeout
  # This service would take SIGTERM for itself; see infra/signals.py.
  jax.config.update("jax_enable_preemption_service", False)
  # JAX ends all processes when one is silent for this long.
  max_silence = max(10, int(min(timeout, 100)))
  lost_processes.note(
    f"--multihost: the processes did not meet within {number(timeout)} s"
  )
  lost_processes.catch_abort(max_silence)
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      initialization_timeout=int(timeout),
      heartbeat_timeout_seconds=max_silence,
      shutdown_timeout_seconds=30,
    )
  except ValueError as e:
    raise ValueError(
      f"--multihost: {e} Where JAX cannot detect the processes (it does on "
      "Cloud TPU, GKE TPU, Slurm and Open MPI), give --coordinator, "
      "--num_processes and --process_id"
    ) from e
  except RuntimeError as e:
    raise ProcessError(
      lost_processes.describe(str(e).splitlines()[0])
    ) from None
  lost_processes.note("the devices of all processes")
  count = jax.process_count()
  if num_processes is not None and count != num_processes:
    raise ProcessError(f"--num_processes={num_processes}, but {count} came")


def is_first() -> bool:
  """Tells whether this is the process that writes."""
  return index() == 0


def index() -> int:
  """Returns the number of this process, from 0."""
  return distributed.global_state.process_id


def timeout() -> float:
  """Returns the seconds that processes wait for each other."""
  return _State.timeout


def count() -> int:
  """Returns the number of processes of this run."""
  return distributed.global_state.num_processes


def run_on_first(name: str, make: Callable[[], T]) -> T:
  """Calls a function in the first process and returns its value in all.

  Args:
    name: of the wait, for messages.
    make: called in the first process only; returns a JSON value.

  Raises:
    ValueError, OSError, OutOfMemory: an error of `make`, in every process.
    ProcessError: the first process did not answer, or raised something else.
  """
  if count() == 1:
    return make()
  key = _key(name)
  if is_first():
    try:
      value = make()
    except BaseException as e:
      _put(key, {"error": _kind(e), "text": f"{e}"})
      raise
    _put(key, {"value": value})
    return value
  answer = _get(key, name, process=0)
  if "error" in answer:
    kinds = {kind.__name__: kind for kind in _KINDS}
    raise kinds.get(answer["error"], ProcessError)(answer["text"])
  return answer["value"]


def barrier(name: str) -> None:
  """Waits until all processes are here.

  Raises:
    ProcessError: one did not come in time; the message has the name.
  """
  if count() == 1:
    return
  key = _key(name)
  lost_processes.note(name)
  try:
    _client().wait_at_barrier(key, int(_State.timeout * 1000))
  except jax.errors.JaxRuntimeError as e:
    raise ProcessError(
      f"barrier {name!r}: not all of {count()} processes came within "
      f"{number(_State.timeout)} s: {str(e).splitlines()[0]}"
    ) from None


def agree(what: str, facts: Mapping[str, Any]) -> None:
  """Checks that every process has the same facts.

  Args:
    what: for messages.
    facts: name -> JSON value. The name "error" is special: its value is what
      went wrong in this process.

  Raises:
    ValueError: in every process, naming the processes and the facts.
  """
  if count() == 1:
    if "error" in facts:
      raise ValueError(facts["error"])
    return
  key = _key(what)
  here = {"host": socket.gethostname(), "facts": dict(facts)}
  _put(f"{key}/{distributed.global_state.process_id}", here)

  def compare() -> None:
    all_facts = [_get(f"{key}/{p}", what, p) for p in range(count())]
    differences = _differences(all_facts)
    if differences:
      raise ValueError(f"{what}: {'; '.join(differences[:8])}")

  run_on_first(what, compare)


def _differences(all_facts: list[dict[str, Any]]) -> list[str]:
  """Lists where processes differ from the first one, in words."""
  errors = {p: f["facts"].get("error") for p, f in enumerate(all_facts)}
  if len(set(errors.values())) == 1 and errors[0] is not None:
    return [errors[0]]
  lines = [
    f"process {p} ({all_facts[p]['host']}): {e}"
    for p, e in errors.items()
    if e is not None
  ]
  if lines:
    return lines
  first, *others = all_facts
  for p, other in enumerate(others, 1):
    a, b = first["facts"], other["facts"]
    lines += [
      f"{k} is {a.get(k, 'absent')!r} in process 0 ({first['host']}), "
      f"{b.get(k, 'absent')!r} in process {p} ({other['host']})"
      for k in sorted({*a, *b})
      if a.get(k, "absent") != b.get(k, "absent")
    ]
  return lines


def vote(wish: bool) -> Any:
  """Tells whether any process has the wish, with one answer for all of them.

  The devices compute the answer, in the order of what else they run. The caller
  need not wait for it at once: `read_vote` waits.
  """
  if count() == 1:
    return wish
  devices = np.array(jax.devices())
  place = NamedSharding(Mesh(devices, "all"), P("all"))
  ballots = jax.make_array_from_callback(
    (len(devices),), place, lambda index: np.full(1, wish)
  )
  return _any(place.mesh)(ballots)


def read_vote(answer: Any) -> bool:
  """Waits for the answer of a `vote`."""
  with deadline("whether a signal came"):
    return bool(answer)


@contextlib.contextmanager
def name_losses() -> Iterator[None]:
  """Raises what JAX says of a process that is gone as a ProcessError.

  Raises:
    ProcessError: one line that names the newest wait.
  """
  try:
    yield
  except Exception as e:
    if count() == 1 or not lost_processes.is_loss(e):
      raise
    text = f"{e}".splitlines()[0]
    raise ProcessError(
      lost_processes.describe(f"another process is gone: {text}")
    ) from e


@contextlib.contextmanager
def deadline(name: str) -> Iterator[None]:
  """Ends this process if the body takes too long, naming what it waited for.

  For waits inside of JAX, which have no time-out of their own.

  Raises:
    ProcessError: JAX found that another process is gone.
  """
  if count() == 1:
    yield
    return
  lost_processes.note(name)

  def give_up() -> None:
    line = (
      f"{name}: not there within {number(_State.timeout)} s; another of the "
      f"{count()} processes hangs or is gone"
    )
    lost_processes.end(MACHINE, line)

  timer = threading.Timer(_State.timeout, give_up)
  timer.daemon = True
  timer.start()
  try:
    with name_losses():
      yield
  finally:
    timer.cancel()


def leave(code: int) -> None:
  """Ends this process together with the others that end.

  Returns only if there are no others and the machine is well. After an error of
  the machine, threads that could not write either would print their own errors
  over the message.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  if not jax.distributed.is_initialized():
    if code == MACHINE:
      lost_processes.end(code, exit_codes.deferred_line)
    return
  lost_processes.note_end(code)
  # A process that fails alone must not wait for those that wait for it.
  seconds = 1 if code == MACHINE else 20
  with contextlib.suppress(RuntimeError):
    _client().wait_at_barrier("leave", seconds * 1000)
    if code != MACHINE:  # else others may be gone, and this would wait for them
      jax.distributed.shutdown()
  lost_processes.end(code, exit_codes.deferred_line)


# --- the key-value store ------------------------------------------------------


def _client() -> Any:
  """Returns JAX's client of its coordination service."""
  return distributed.global_state.client


def _key(name: str) -> str:
  """Makes the key of the next wait, the same in all processes."""
  _State.waits += 1
  return f"bct_jax/{_State.waits}/{name}"


def _kind(e: BaseException) -> str:
  """Names the type under which other processes raise an error."""
  for kind in _KINDS:
    if isinstance(e, kind):
      return kind.__name__
  return type(e).__name__


def _put(key: str, value: Any) -> None:
  """Stores a JSON value for the other processes."""
  text = json.dumps(value)
  parts = [text[i : i + _PART] for i in range(0, len(text), _PART)]
  for i, part in enumerate(parts):
    _client().key_value_set(f"{key}/part/{i}", part)
  _client().key_value_set(f"{key}/parts", str(len(parts)))


def _get(key: str, name: str, process: int) -> Any:
  """Waits for a value that another process stores.

  Args:
    key: of the value.
    name: of the wait, for messages.
    process: the one that stores it.

  Raises:
    ProcessError: the value did not come in time.
  """
  timeout = int(_State.timeout * 1000)
  lost_processes.note(f"{name}, of process {process}")
  try:
    count = int(_client().blocking_key_value_get(f"{key}/parts", timeout))
    parts = [
      _client().blocking_key_value_get(f"{key}/part/{i}", timeout)
      for i in range(count)
    ]
  except jax.errors.JaxRuntimeError as e:
    raise ProcessError(
      f"{name}: process {process} did not answer within "
      f"{number(_State.timeout)} s: "
      f"{str(e).splitlines()[0]}"
    ) from None
  return json.loads("".join(parts))


@functools.lru_cache(maxsize=1)
def _any(mesh: Mesh) -> Callable[[jax.Array], jax.Array]:
  """Compiles what tells whether any of the ballots is true."""
  return jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))
