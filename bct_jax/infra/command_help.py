"""Formats the help of a command: examples first, then flags by group."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

WIDTH = 80
_REPEAT = ";\n"  # what absl adds to the help of a flag that may be repeated


class Flag(Protocol):
  """Describes what is read of a flag of absl."""

  help: Any
  default: Any
  boolean: bool
  parser: Any


def format_help(
  usage: str,
  examples: Mapping[str, str],
  groups: Mapping[str, Sequence[str]],
  values: Mapping[str, Flag],
) -> str:
  """Formats the help of a command: examples first, then flags by group.

  Args:
    usage: the command line in short.
    examples: what to do -> the command line that does it.
    groups: title -> names of flags.
    values: has the flags with their help and defaults.

  Raises:
    KeyError: a group names a flag that is not there.
  """
  lines = [f"usage: {usage}", ""]
  for what, command in examples.items():
    lines += [f"{what}:", f"  {command}"]
  for title, names in groups.items():
    lines += ["", f"{title}:"]
    for name in names:
      flag = values[name]
      default = flag.default
      known = default not in (None, [], False)
      shown = f" (default: {default})" if known else ""
      switch = f"--{name}" if flag.boolean else f"--{name}={_kind(flag)}"
      lines += [f"  {switch}"]
      lines += textwrap.wrap(
        f"{(flag.help or '').split(_REPEAT)[0]}{shown}",
        WIDTH,
        initial_indent=" " * 6,
        subsequent_indent=" " * 6,
      )
  return "\n".join(lines)


def _kind(flag: Flag) -> str:
  """Names what a flag takes."""
  kind = flag.parser.flag_type()
  return {"int": "N", "float": "X", "config object": "FILE"}.get(kind, "TEXT")
