"""Serves model folders on localhost as the hub does."""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers the requests of huggingface_hub's snapshot_download."""

  def do_HEAD(self):
    self._answer(with_body=False)

  def do_GET(self):
    self._answer(with_body=True)

  def log_message(self, format, *args):
    pass

  def _answer(self, with_body: bool) -> None:
    server = self.server
    assert isinstance(server, Server)
    server.asked.append(f"{self.command} {self.path}")
    parts = self.path.partition("?")[0].strip("/").split("/")
    if parts[:2] == ["api", "models"] and parts[4] in ("revision", "tree"):
      self._say(server.info(*parts[2:6]), with_body, {})
    elif parts[2:3] == ["resolve"]:
      folder = server.find("/".join(parts[:2]), parts[3])
      path = folder and folder / "/".join(parts[4:])
      data = path.read_bytes() if path and path.is_file() else None
      commit = {"X-Repo-Commit": parts[3]}
      self._say(data, with_body, commit)
    else:
      self._say(None, with_body, {})

  def _say(self, data: bytes | None, with_body: bool, headers) -> None:
    if data is None:
      self.send_response(404)
      self.send_header("X-Error-Code", "RepoNotFound")
      self.send_header("Content-Length", "0")
      self.end_headers()
      return
    self.send_response(200)
    etag = hashlib.sha256(data).hexdigest()
    for name, value in {"ETag": f'"{etag}"', **headers}.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    if with_body:
      self.wfile.write(data)


class Server(http.server.ThreadingHTTPServer):
  """Holds models: "org/name" -> revision -> (commit, folder)."""

  def __init__(self, models: Mapping[str, Mapping[str, tuple[str, Path]]]):
    super().__init__(("127.0.0.1", 0), Handler)
    self.models, self.asked = models, []
    self.url = f"http://127.0.0.1:{self.server_address[1]}"

  def find(self, name: str, commit: str) -> Path | None:
    """Returns the folder of a commit."""
    revisions = self.models.get(name, {}).values()
    return dict(revisions).get(commit)

  def info(self, org: str, name: str, what: str, revision: str) -> bytes | None:
    """Returns what the hub says of a revision, which may be a commit.

    Args:
      org, name: of the model.
      what: "revision" is the commit and the names of its files, "tree" these
        with their sizes.
      revision: a name, or a commit.
    """
    of_model = self.models.get(f"{org}/{name}", {})
    by_commit = {
      commit: (commit, folder) for commit, folder in of_model.values()
    }
    if (found := {**by_commit, **of_model}.get(revision)) is None:
      return None
    commit, folder = found
    files = sorted(folder.iterdir())
    if what == "tree":
      value = [
        {
          "type": "file",
          "path": p.name,
          "size": p.stat().st_size,
          "oid": hashlib.sha1(p.read_bytes()).hexdigest(),
        }
        for p in files
      ]
    else:
      names = [{"rfilename": p.name} for p in files]
      value = {"id": f"{org}/{name}", "sha": commit, "siblings": names}
    return json.dumps(value).encode()


@contextlib.contextmanager
def serve(models) -> Iterator[Server]:
  """Serves until the end of a `with` block."""
  server = Server(models)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  try:
    yield server
  finally:
    server.shutdown()
    server.server_close()
    thread.join()
