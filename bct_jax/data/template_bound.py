"""Bounds the time and memory that a chat template takes, before it is used.

A template is a program of the model folder. Jinja's sandbox keeps it from the
system, but not from running without end or filling the memory. One that could
do so is rendered once in a process of its own, under limits of the system.
"""

import functools
import re
import subprocess
import sys

SECONDS, BYTES = 10, 2 << 30
# What can take more than the messages are long: ranges, products and powers,
# padding, functions that call themselves. Few real templates have these.
_SUSPICIOUS = re.compile(
  r"\brange\s*\(|\*|\brecursive\b|\blipsum\b|\bmacro\b"
  r"|\b(center|ljust|rjust|zfill|indent|wordwrap|format|batch|slice|replace)\b"
  r"|%\s*\(?\s*\d"
)
_RENDER = """
import resource, sys
seconds, size = map(int, sys.argv[1:])
for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, size)):
  try:
    resource.setrlimit(kind, (most, most))
  except (OSError, ValueError):
    pass  # a system without this limit has the time-out
from jinja2.sandbox import ImmutableSandboxedEnvironment
env = ImmutableSandboxedEnvironment(
  trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
)
def refuse(text):
  raise ValueError(text)
env.globals.update(raise_exception=refuse, strftime_now=lambda form: "1 May")
env.filters["tojson"] = lambda x, **_: repr(x)
turns = [
  {"role": "user", "content": "Is it?"},
  {"role": "assistant", "content": "Yes."},
]
text = sys.stdin.buffer.read().decode("utf-8", "surrogatepass")
for messages in (turns[:1], turns):
  for prompt in (True, False):
    try:
      env.from_string(text).render(
        messages=messages, add_generation_prompt=prompt,
        bos_token="", eos_token="", tools=None,
      )
    except MemoryError:
      sys.exit(9)
    except Exception:
      pass  # what it raises is for the real rendering to say
"""


@functools.lru_cache(maxsize=64)
def find_excess(text: str) -> str | None:
  """Says how a template goes beyond its bounds; None if it does not.

  Args:
    text: of the template.
  """
  if not _SUSPICIOUS.search(text):
    return None
  try:
    code = subprocess.run(
      [sys.executable, "-c", _RENDER, str(SECONDS), str(BYTES)],
      input=text.encode("utf-8", "surrogatepass"),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      timeout=6 * SECONDS,
    ).returncode
  except subprocess.TimeoutExpired:
    code = -1
  if code == 9:
    return f"needs more than {BYTES >> 30} GiB for two short messages"
  if code < 0:  # ended by a signal, as of the limit on its time
    return f"did not end within {SECONDS} s for two short messages"
  return None
