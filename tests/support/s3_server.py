"""A real S3 server on localhost, moto in a process of its own, and a way to it
that can be cut."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time

from workers import free_port

KEYS = {
  "AWS_ACCESS_KEY_ID": "key",
  "AWS_SECRET_ACCESS_KEY": "secret",
  "AWS_DEFAULT_REGION": "us-east-1",
}


@contextlib.contextmanager
def serve():
  """Yields the port of a server."""
  port = free_port()
  server = subprocess.Popen(
    [sys.executable, "-m", "moto.server", "-p", str(port), "-H", "127.0.0.1"],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    end = time.monotonic() + 120
    while True:
      with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port)).close()
        break
      assert server.poll() is None and time.monotonic() < end
      time.sleep(0.05)
    yield port
  finally:
    server.kill()
    server.wait()


class Road:
  """Passes connections on to a server, while it is open."""

  def __init__(self, port):
    self._to, self.port = port, free_port()
    self._listener: socket.socket | None = None
    self._ends: list[socket.socket] = []
    self.open()

  def env(self):
    """What a command needs to find the server by this way."""
    return {**KEYS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}"}

  def open(self):
    self._listener = socket.create_server(("127.0.0.1", self.port))
    threading.Thread(
      target=self._accept, args=(self._listener,), daemon=True
    ).start()

  def cut(self):
    """Refuses connections from here on, and ends those that are there."""
    assert self._listener is not None
    for end in (self._listener, *self._ends):
      with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
      end.close()
    self._ends.clear()

  def _accept(self, listener):
    with contextlib.suppress(OSError):
      while True:
        here, _ = listener.accept()
        there = socket.create_connection(("127.0.0.1", self._to))
        self._ends += [here, there]
        for pair in ((here, there), (there, here)):
          threading.Thread(target=_pass, args=pair, daemon=True).start()


def _pass(source, target):
  with contextlib.suppress(OSError):
    while data := source.recv(1 << 16):
      target.sendall(data)
  with contextlib.suppress(OSError):
    target.shutdown(socket.SHUT_WR)


def keys(store):
  """Names of the objects of a store but for its own, as a run has files."""
  return {name for name in store.list() if not name.startswith(".")}


def files_of(folder):
  """Names of the files of a run directory."""
  names = (
    (os.path.relpath(os.path.join(where, name), folder), name)
    for where, _, found in os.walk(folder)
    for name in found
    if not os.path.islink(os.path.join(where, name))
  )
  return {
    path
    for path, _ in names
    if not any(part.startswith(".") for part in path.split(os.sep))
  }
