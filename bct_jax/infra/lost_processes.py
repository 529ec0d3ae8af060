"""Tells that another process of a run is gone from errors of this one.

JAX has three ways to say so. Collectives raise an error of their transport, on
CPUs a plain ValueError of Gloo. Waits in the coordination service time out. And
where a heartbeat stays away, C++ aborts the process, past all of Python. Each
has to end in the code MACHINE and one line that names what was waited for.
"""

import ctypes
import os
import re
import signal
from collections.abc import Iterator

import jax

from bct_jax.infra import exit_codes
from bct_jax.infra.exit_codes import MACHINE

# A status of C++ and what only messages between processes are about.
_LOSS = re.compile(
  r"(UNKNOWN|INTERNAL|UNAVAILABLE|ABORTED|CANCELLED|DEADLINE_EXCEEDED"
  r"|FAILED_PRECONDITION)\b.*(gloo|nccl|connection|socket|peer|heartbeat"
  r"|coordination|barrier|shut ?down|timed out|deadline exceeded)",
  re.DOTALL | re.IGNORECASE,
)


class _State:
  """Holds what this process does, for the line that ends it."""

  doing = ""  # the newest wait, in words
  code: int | None = None  # how the process ends; None before it does
  handler: object = None  # so that C finds it for as long as the process lives


def note(doing: str) -> None:
  """Notes what this process waits for, in words that follow "error: "."""
  _State.doing = doing


def note_end(code: int) -> None:
  """Notes that the process ends with this code, whatever others do."""
  _State.code = code


def end(code: int, line: str) -> None:
  """Ends this process at once; the line is the last one on stderr.

  Threads of JAX may be printing, and go on with it until the process has ended.

  Args:
    code: of the process.
    line: printed if the code is MACHINE; other codes have their own.
  """
  stderr = os.dup(2)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  if code == MACHINE and line:
    os.write(stderr, f"\nerror: {line}\n".encode())
  os._exit(code)


def describe(reason: str) -> str:
  """Words the line about a process that is gone."""
  return f"{_State.doing or 'no wait yet'}: {reason}; the same command goes on"


def is_loss(error: BaseException) -> bool:
  """Tells whether JAX raised an error since another process is gone."""
  return any(
    # Exactly these types: errors of our own are classes below them.
    type(e) in (ValueError, RuntimeError, jax.errors.JaxRuntimeError)
    and _LOSS.match(str(e).removeprefix("INVALID_ARGUMENT: "))
    for e in _chain(error)
  )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an error and those that it was raised from."""
  seen: set[int] = set()
  while error is not None and id(error) not in seen:
    seen.add(id(error))
    yield error
    error = error.__cause__ or error.__context__


def catch_abort(max_silence: int) -> None:
  """Has an abort of JAX end this process with MACHINE and one line.

  JAX offers a callback for lost heartbeats, but calls it with a type that
  Python does not know, which aborts as well. A handler of Python's own would
  run too late, since abort() ends the process when the handler of C returns.

  Args:
    max_silence: seconds without a heartbeat after which JAX aborts.
  """

  def end_aborted(number: int) -> None:
    """Runs in the thread that aborts; imports nothing and takes no lock."""
    del number
    silence = f"another process is gone, or silent for {max_silence} s"
    line = exit_codes.deferred_line or describe(
      f"{silence}, and JAX has ended this one"
    )
    end(MACHINE if _State.code is None else _State.code, line)

  exit_codes.deferred_codes.add(MACHINE)
  _State.handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end_aborted)
  library = ctypes.CDLL(None)
  library.signal(signal.SIGABRT, _State.handler)
