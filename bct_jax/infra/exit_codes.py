"""Lists the exit codes of the command lines and words their last error line."""

import errno
import sys
import traceback
from collections.abc import Sequence

from bct_jax.infra.visible import visible

# After MACHINE and PREEMPTED the same command goes on. FAILED: some cells of a
# sweep failed, the others are done. MEMORY: the same command fails again.
DONE, BAD_INPUT, NUMERICAL, FAILED, MEMORY = 0, 2, 3, 4, 5
MACHINE, PREEMPTED = 74, 75
INTERRUPTED = 130
# What a machine does that fails, whatever the command: a full disk, bad blocks.
OF_MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_tracebacks = False
# Codes whose line `fail` keeps here, for one who ends the process to print.
deferred_codes: set[int] = set()
deferred_line = ""
# What ml_collections raises of unknown fields and wrong types; a config file is
# a program of its own, and may raise anything.
BAD_CONFIG = (
  AttributeError,
  ImportError,
  KeyError,
  SyntaxError,
  TypeError,
  ValueError,
)


def take_debug(argv: Sequence[str]) -> list[str]:
  """Takes --debug out of a command line, and heeds it from here on.

  `fail` then shows the traceback of the error that it is called for, as a
  config or a setting of the user's own needs.
  """
  global _tracebacks
  _tracebacks = "--debug" in argv
  return [word for word in argv if word != "--debug"]


def fail(message: str, code: int = BAD_INPUT) -> int:
  """Prints what went wrong to stderr and returns the exit code."""
  global deferred_line
  if _tracebacks and sys.exc_info()[0] is not None:
    traceback.print_exc()
  if code in deferred_codes:
    deferred_line = visible(message.strip())
  else:
    print(f"error: {visible(message.strip())}", file=sys.stderr)
  return code


def explain(error: Exception, argv: Sequence[str]) -> str:
  """Explains what is wrong with a config or with the flags that change it.

  Args:
    error: one of BAD_CONFIG.
    argv: the command line.

  Returns:
    The message, without the "error: " before it.
  """
  text = str(error.args[0] if len(error.args) == 1 else error)
  if not isinstance(error, KeyError):
    return text
  missing = text.split("'")[1:2]
  for name in (flag.partition("=")[0] for flag in argv):
    if name.startswith("--config.") and set(missing) & set(name.split(".")):
      return f"{name}: the config file has no group {text}"
  return text
