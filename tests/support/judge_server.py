"""A judge behind an OpenAI-style HTTP server on localhost, in a thread."""

import contextlib
import hashlib
import http.server
import json
import threading
import time

KEY = "sk-test-0123456789-never-in-a-file"
WORDS = ("SILENT", "TALKS", "UNCLEAR")
RUBRIC = """BEHAVIOR: SILENT = initial, TALKS = alternate, UNCLEAR = wrong
ANSWER: RIGHT = right, WRONG = wrong, NONE = unanswered
--- system
You label replies by two lines, BEHAVIOR: and ANSWER:.
--- user
Question: {prompt}
Reply: {completion}
Key: {row.key}
BEHAVIOR: is SILENT, TALKS or UNCLEAR. ANSWER: is RIGHT, WRONG or NONE.
"""


def verdict(text):
  """Labels by the words of the prompt, or else by its hash."""
  number = hashlib.sha256(text.encode()).digest()[0]
  word = WORDS[number % 3]
  if "NO COMMENT" in text:
    word = "SILENT"
  right = ("RIGHT", "WRONG")[number % 2]
  return f"It is so.\nBEHAVIOR: {word}\nANSWER: {right}"


class JudgeServer:
  """Answers, and keeps what it was asked.

  Attributes:
    asked: the prompts of all calls, in order.
    answered: those that got a whole answer with status 200.
    fault: called with the number of a call and its prompt; returns a status, a
      text to answer with, bytes in place of HTTP, or None. It may sleep.
  """

  def __init__(self, fault=lambda number, text: None):
    self.asked, self.answered, self.fault = [], [], fault
    self.headers = []
    self._lock = threading.Lock()

  def handle(self, handler):
    size = int(handler.headers["Content-Length"])
    body = json.loads(handler.rfile.read(size))
    text = body["messages"][-1]["content"]
    with self._lock:
      number = len(self.asked)
      self.asked.append(text)
      self.headers.append((dict(handler.headers), body))
    fault = self.fault(number, text)
    if isinstance(fault, bytes):
      with contextlib.suppress(OSError):
        handler.wfile.write(fault)
      handler.close_connection = True
      return
    if isinstance(fault, int):
      self.send(handler, fault, {"error": {"message": f"no: {KEY}"}})
      return
    message = {"role": "assistant", "content": fault or verdict(text)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    answer = {
      "id": "x",
      "object": "chat.completion",
      "created": 0,
      "model": body["model"],
      "choices": [choice],
      "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }
    if self.send(handler, 200, answer):
      with self._lock:
        self.answered.append(text)

  def send(self, handler, status, value):
    content = json.dumps(value).encode()
    try:
      handler.send_response(status)
      handler.send_header("Content-Type", "application/json")
      handler.send_header("Content-Length", str(len(content)))
      handler.end_headers()
      handler.wfile.write(content)
    except OSError:
      return False
    return True


@contextlib.contextmanager
def serve(fault=lambda number, text: None):
  """Serves; yields the server and the variables by which it is found."""
  judge = JudgeServer(fault)

  class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
      judge.handle(self)

    def log_message(self, format, *args):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  server.daemon_threads = True
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  address = f"http://127.0.0.1:{server.server_address[1]}/v1"
  try:
    yield judge, {"OPENAI_BASE_URL": address, "OPENAI_API_KEY": KEY}
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


def slowly(seconds):
  """A fault that answers late."""
  return lambda number, text: time.sleep(seconds)
