"""Exit codes of the command lines, and the one line before they end badly."""

import sys

# After MACHINE and PREEMPTED the same command goes on. FAILED: some cells of a
# sweep failed, the others are done.
DONE, BAD_INPUT, NUMERICAL, FAILED, MACHINE, PREEMPTED = 0, 2, 3, 4, 74, 75
INTERRUPTED = 130


def fail(message: str, code: int = BAD_INPUT) -> int:
  """Says what went wrong on stderr and returns the exit code."""
  print(f"error: {message.strip()}", file=sys.stderr)
  return code
