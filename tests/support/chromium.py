"""A headless Chromium over its DevTools protocol, for the tests of pages."""

import contextlib
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run
  --disable-sync --disable-background-networking --disable-component-update
  --disable-dev-shm-usage --remote-debugging-port=0
  --remote-allow-origins=*""".split()


class Tab:
  """One page. `events` holds what it reported, in order."""

  def __init__(self, socket: Any):
    self._socket = socket
    self._ids = itertools.count(1)
    self.events: list[dict[str, Any]] = []
    for domain in ("Runtime", "Log", "Page", "Network"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    number = next(self._ids)
    self._socket.send(
      json.dumps({"id": number, "method": method, "params": params})
    )
    while True:
      told = json.loads(self._socket.recv(timeout=60))
      if told.get("id") == number:
        assert "error" not in told, told
        return told["result"]
      self.events.append(told)

  def run(self, script: str) -> Any:
    """The value of an expression in the page; a promise is waited for."""
    told = self.call(
      "Runtime.evaluate",
      expression=script,
      returnByValue=True,
      awaitPromise=True,
    )
    assert "exceptionDetails" not in told, told
    return told["result"].get("value")

  def open(self, page: Path) -> None:
    self.call("Page.navigate", url=page.as_uri())
    while self.run("document.readyState") != "complete":
      time.sleep(0.02)

  def wait(self, condition: str) -> None:
    end = time.monotonic() + 30
    while not self.run(condition):
      assert time.monotonic() < end, condition
      time.sleep(0.02)

  def press(self, key: str) -> None:
    text = {"text": key} if len(key) == 1 else {}
    self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
    self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

  def complaints(self) -> list[Any]:
    """Errors, messages, dialogs and violations of the page's policy."""
    bad = ("Log.entryAdded", "Runtime.exceptionThrown")
    bad += ("Runtime.consoleAPICalled", "Page.javascriptDialogOpening")
    return [e for e in self.events if e.get("method") in bad]

  def requests(self) -> list[str]:
    return [
      e["params"]["request"]["url"]
      for e in self.events
      if e.get("method") == "Network.requestWillBeSent"
    ]


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
  """A tab of a new browser; skips the test where there is none."""
  program = shutil.which("chromium") or shutil.which("google-chrome")
  if program is None:
    pytest.skip("no chromium")
  command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
  process = subprocess.Popen(
    command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )
  try:
    with connect(_address(profile, process), max_size=2**26) as socket:
      yield Tab(socket)
  finally:
    process.terminate()
    process.wait(timeout=30)


def _address(profile: Path, process: subprocess.Popen) -> str:
  port, end = profile / "DevToolsActivePort", time.monotonic() + 60
  while not (port.is_file() and "\n" in port.read_text()):
    assert process.poll() is None and time.monotonic() < end, "no browser"
    time.sleep(0.05)
  url = f"http://127.0.0.1:{port.read_text().split()[0]}/json/list"
  with urllib.request.urlopen(url, timeout=30) as answer:
    tabs = json.load(answer)
  return next(t["webSocketDebuggerUrl"] for t in tabs if t["type"] == "page")
