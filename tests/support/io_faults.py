"""Fails one operation on files in a whole run, below Python and Orbax.

`io_faults.c` is between the process and the C library, so what Orbax, NumPy and
safetensors write counts as Python's writes do. As a command it walks all kinds
of operations of a run of configs/tiny.py, each failed once in each way, and
prints a line of JSON each:

  PYTHONPATH=.:tests:tests/support python -m io_faults OUT.jsonl

The order is drawn, so that a part of the walk is a sample of all. It goes on
with an OUT.jsonl that it has begun. An operation has its kind by what it does
and the file's name, without random parts: of the many writes of one file the
first and the last are failed.
"""

import errno
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import fork_server
from runs import ENV, HANGS, caching, caching_apart, comparable

WAYS = {
  "full disk": str(errno.ENOSPC),
  "I/O error": str(errno.EIO),
  "read-only": str(errno.EROFS),
  "kill": "kill",
}
_RANDOM = re.compile(r"[0-9a-f]{8,}|(?<=tmp-)\d+|(?<=\.)\w{8}(?=\.tmp)")


class Fault(NamedTuple):
  """What fails: an operation on files of a name, the nth of these."""

  operation: str
  glob: str
  nth: int
  way: str


def compile_library(folder: Path) -> Path:
  """Compiles io_faults.c, with the C compiler of this machine."""
  source, out = Path(__file__).with_suffix(".c"), folder / "io_faults.so"
  command = ["cc", "-shared", "-fPIC", "-O1", "-o", out, source, "-ldl"]
  subprocess.run(command, check=True)
  return out


class Runner:
  """Starts runs in processes that have the library."""

  def __init__(self, library: Path, model: Path):
    self.model = model
    self.preload = {"LD_PRELOAD": str(library)}
    before = os.environ.get("LD_PRELOAD")
    os.environ |= self.preload
    try:
      self.server = fork_server.ForkServer()
    finally:
      if before is None:
        del os.environ["LD_PRELOAD"]
      else:
        os.environ["LD_PRELOAD"] = before

  def run(self, workdir: Path, fault: Fault | None = None, log=None):
    """Runs configs/tiny.py; returns the exit code and the error output."""
    kept = caching_apart(workdir.parent) if fault else caching()
    variables = {**self.preload, "IO_ROOT": str(workdir)}
    if fault:
      variables["IO_FAIL"] = f"{fault.operation} {fault.glob}"
      variables |= {"IO_NTH": str(fault.nth), "IO_HOW": WAYS[fault.way]}
      variables["IO_FIRED"] = str(workdir.parent / "fired")
    if log:
      variables["IO_LOG"] = str(log)
    argv = ["--config=configs/tiny.py", f"--config.model.path={self.model}"]
    argv.append(f"--workdir={workdir}")
    process = self.server.start(
      "bct_jax.main", argv, ENV | kept | variables, fork_server.ROOT
    )
    _, err = process.communicate(timeout=HANGS)
    return process.returncode, err

  def list_faults(self, folder: Path) -> Iterator[Fault]:
    """Yields the faults of all kinds of operations of a run in `folder`."""
    log = folder / "operations.txt"
    code, err = self.run(folder / "run", log=log)
    assert code == 0, err
    counts: dict[tuple[str, str], int] = {}
    for line in log.read_text().splitlines():
      operation, name = line.split(" ", 1)
      kind = operation, _RANDOM.sub("*", name)
      counts[kind] = counts.get(kind, 0) + 1
    for (operation, glob), count in counts.items():
      for nth in sorted({1, count}):
        for way in WAYS:
          # What only reads has no need of room, nor of rights.
          if operation not in ("open", "read") or way in ("I/O error", "kill"):
            yield Fault(operation, glob, nth, way)

  def try_fault(self, fault: Fault, folder: Path, reference: Path) -> dict:
    """Runs with a fault, and once more without; returns what came of it."""
    workdir = folder / "run"
    code, err = self.run(workdir, fault)
    again, more = self.run(workdir)
    lines = err.strip().splitlines()
    return {
      **fault._asdict(),
      "fired": (folder / "fired").exists(),
      "code": code,
      "said": lines[-1] if lines else "",
      "traceback": "Traceback" in err,
      "again": again,
      "said_again": more.strip().splitlines()[-1] if again else "",
      "equal": again == 0 and comparable(workdir) == comparable(reference),
    }


def find_wrong(row: dict) -> str:
  """Says what is wrong with what came of a fault; "" if nothing is.

  A fault may not come: threads write in no fixed order, and a file that is
  written twice in one run may be written once in another.
  A kill ends the run. Anything else does with code 74 (2 where nothing can be
  written), or is survived. The same command ends like a run without a fault.
  """
  if not row["fired"]:
    codes = (0,)
  elif row["way"] == "kill":
    codes = (-9,)
  else:
    codes = (0, 74, 2) if row["way"] == "read-only" else (0, 74)
  if row["code"] not in codes:
    return f"code {row['code']}: {row['said']}"
  if row["traceback"]:
    return "a traceback"
  if row["code"] in (2, 74) and not row["said"].startswith("error: "):
    return f"no error but {row['said']!r}"
  if row["again"]:
    return f"then code {row['again']}: {row['said_again']}"
  return "" if row["equal"] else "other results"


def main(out: Path) -> None:
  """Tries all faults that `out` does not have yet."""
  from bct_jax.models import demo

  done = set()
  if out.exists():
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    done = {tuple(row[name] for name in Fault._fields) for row in rows}
  with tempfile.TemporaryDirectory() as name:
    folder = Path(name)
    runner = Runner(compile_library(folder), demo.tiny(folder / "model"))
    reference = folder / "reference"
    reference.mkdir()
    faults = list(runner.list_faults(reference))
    random.Random(0).shuffle(faults)
    print(f"{len(faults)} faults, {len(done)} tried", file=sys.stderr)
    for fault in faults:
      if tuple(fault) in done:
        continue
      tried = folder / "tried"
      tried.mkdir()
      row = runner.try_fault(fault, tried, reference / "run")
      row["wrong"] = find_wrong(row)
      with out.open("a") as file:
        file.write(json.dumps(row) + "\n")
      shutil.rmtree(tried)


if __name__ == "__main__":
  main(Path(sys.argv[1]))
