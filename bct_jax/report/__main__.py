"""Writes reports and tables from the command line.

`python -m bct_jax.report RUN [RUN ...] [--out=report.html] [--watch]`.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from bct_jax.infra.exit_codes import BAD_INPUT, DONE, MACHINE, OF_MACHINE
from bct_jax.infra.object_store import is_url
from bct_jax.report import ReportError, write_figure, write_report
from bct_jax.report.league import league_table
from bct_jax.report.read.folders import find_run
from bct_jax.report.tables import FORMS, evals_csv, reading_table
from bct_jax.report.watch import watch_runs


def _make_parser() -> argparse.ArgumentParser:
  """Makes the parser of the command line."""
  parser = argparse.ArgumentParser(
    prog="python -m bct_jax.report",
    description="Writes one self-contained HTML file about runs.",
  )
  parser.add_argument(
    "run_dirs",
    nargs="+",
    metavar="RUN",
    help="a run directory, or that of a sweep, with a run in each cells/NAME; "
    "also s3://BUCKET/RUN",
  )
  parser.add_argument(
    "--out",
    type=Path,
    default=Path("report.html"),
    help="the file to write (default: %(default)s)",
  )
  parser.add_argument(
    "--figure",
    type=Path,
    metavar="PNG",
    help="also write the curves of the (one) run's arms as a picture",
  )
  parser.add_argument(
    "--figures",
    type=Path,
    metavar="DIR",
    help="also write every figure as SVG and PNG, and the tables as CSV",
  )
  parser.add_argument(
    "--watch",
    type=_seconds,
    nargs="?",
    const=5.0,
    metavar="SECONDS",
    help="look for changes so often (default: %(const)s) and make the report "
    "again, until all runs are done",
  )
  _add_tables(parser)
  return parser


def _add_tables(parser: argparse.ArgumentParser) -> None:
  """Adds the options that give numbers in place of a page, or beside it."""
  parser.add_argument(
    "--table",
    choices=sorted(FORMS),
    help="print the readings as a table, and write no report",
  )
  parser.add_argument(
    "--league",
    choices=sorted(FORMS),
    help="print a row for each organism (`name` of the config): its margin and "
    "what removed its behavior; write no report",
  )
  parser.add_argument(
    "--at",
    type=_level,
    metavar="RATE=SHARE",
    help="with --table: show each arm at its first eval where that rate is so "
    "high, such as agreed_decorated=0.9; the last eval is shown without it",
  )
  parser.add_argument(
    "--evals",
    type=Path,
    metavar="CSV",
    help="also write every eval of every arm, a line each",
  )


def main(argv: Sequence[str] | None = None) -> int:
  """Writes a report.

  Args:
    argv: the arguments, those of the process if None.

  Returns:
    The exit code: 0 when done, 2 after one line on what is wrong.
  """
  parser = _make_parser()
  args = parser.parse_args(argv)
  if args.figure and len(args.run_dirs) > 1:
    parser.error("--figure shows one run: give one RUN")
  if args.at and not args.table:
    parser.error("--at chooses the rows of a table: give --table too")
  if args.watch and any((args.table, args.league, args.figure, args.evals)):
    parser.error("--watch goes with --out and --figures alone")
  if args.watch and any(map(is_url, args.run_dirs)):
    parser.error("--watch looks at local runs alone")
  try:
    run_dirs = [find_run(place) for place in args.run_dirs]
    if args.watch:
      watch_runs(run_dirs, args.out, args.figures, args.watch)
      return 0
    if args.evals:
      args.evals.write_text(evals_csv(run_dirs), encoding="utf-8")
    if args.league:
      print(league_table(run_dirs, args.league), end="")
      return 0
    if args.table:
      print(reading_table(run_dirs, args.table, args.at), end="")
      return 0
    print(write_report(run_dirs, args.out, args.figures))
    if args.figure:
      print(write_figure(run_dirs[0], args.figure))
  except (OSError, ReportError) as e:
    print(f"error: {e}", file=sys.stderr)
    of_machine = isinstance(e, OSError) and e.errno in OF_MACHINE
    return MACHINE if of_machine else BAD_INPUT
  return DONE


def _level(argument: str) -> tuple[str, float]:
  """Parses `agreed=0.9` into a name and a share."""
  name, _, share = argument.partition("=")
  try:
    level = float(share)
  except ValueError:
    level = -1.0
  if not 0 < level <= 1:
    raise argparse.ArgumentTypeError(
      f"{argument!r}: RATE=SHARE with a share above 0, such as agreed=0.9"
    )
  return name, level


def _seconds(value: str) -> float:
  """Parses a duration above 0."""
  seconds = float(value)
  if not 0 < seconds < math.inf:
    raise argparse.ArgumentTypeError(f"{value}: seconds above 0 are needed")
  return seconds


if __name__ == "__main__":
  sys.exit(main())
