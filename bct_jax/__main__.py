"""Command line: bct-jax COMMAND [FLAGS], the same as python -m bct_jax."""

import os
import runpy
import sys
from collections.abc import Sequence

from bct_jax import __version__
from bct_jax.config import ConfigError, choose
from bct_jax.infra.exit_codes import BAD_INPUT, DONE, fail

# Command -> the module that `python -m` runs, and what it does.
COMMANDS = {
  "run": ("bct_jax.main", "runs an experiment, or goes on; other --mode=s"),
  "sweep": ("bct_jax.sweep", "runs many arms over a grid of values"),
  "report": ("bct_jax.report", "writes HTML, tables and figures about runs"),
  "linear": ("bct_jax.linear", "runs setting 0, a linear model"),
  "tour": ("bct_jax.tour", "shows each step of an experiment in a minute"),
  "demo": ("bct_jax.models.demo", "makes a demo model's folder"),
  "harness": ("bct_jax.interop.harness", "runs lm-eval with models of runs"),
}


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command and returns its exit code.

  Args:
    argv: the command line; None is that of the process.
  """
  name, *rest = (sys.argv if argv is None else argv)[1:] or [""]
  if name == "--version":
    print(f"bct_jax {__version__}")
    return DONE
  if name in ("", "-h", "--help"):
    print(_usage(), file=sys.stdout if name else sys.stderr)
    return DONE if name else BAD_INPUT
  try:
    module, _ = COMMANDS[choose(name, COMMANDS, "command")]
  except ConfigError as e:
    return fail(str(e))
  # As with `python -m`, whichever way this was started.
  if "" not in sys.path and os.getcwd() not in sys.path:
    sys.path.insert(0, os.getcwd())
  sys.argv = [f"bct-jax {name}", *rest]
  runpy.run_module(module, run_name="__main__", alter_sys=True)
  return DONE  # of a command that did not exit by itself


def _usage() -> str:
  """Returns the help: a line for each command."""
  width = max(map(len, COMMANDS))
  return "\n".join(
    [
      "usage: bct-jax COMMAND [FLAGS]",
      "",
      *(f"  {name:{width}}  {what}" for name, (_, what) in COMMANDS.items()),
      "",
      "  --version  prints the version",
    ]
  )


if __name__ == "__main__":
  sys.exit(main())
